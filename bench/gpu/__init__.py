"""Checks and measurements for a GPU, made in one command on a machine that is to be had for minutes."""
