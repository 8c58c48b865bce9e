"""Hostile models and texts, made by code.

There is a module for each kind of attack; `test_readers` feeds each reader of foreign files with what
hypothesis makes.
"""
