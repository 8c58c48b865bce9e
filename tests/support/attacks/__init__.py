"""Hostile models, made by code: a module for each kind of attack, with a line in `tests/attacks/test_models.py`."""
