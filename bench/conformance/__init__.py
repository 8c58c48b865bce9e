"""The API held to its OpenAPI document by schemathesis, as teams that must not reach each other.

`teams.py` makes the teams and what each has, `hooks.py` runs inside schemathesis, and `run.py` starts it.
"""
