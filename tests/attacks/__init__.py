"""Hostile models and texts.

`tests.support.attacks` makes them, a module for each kind of attack; `test_readers` feeds each reader of foreign files
with what hypothesis makes.
"""
