"""Fewer blocks and narrower MLPs: what can go, and how what stays takes it over."""
