"""Engines other than torch that run what a format writes."""
