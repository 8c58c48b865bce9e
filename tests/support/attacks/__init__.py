"""Hostile models, made by code: a module for each kind of attack, and a line for it in `tests/attacks/test_models.py`."""
