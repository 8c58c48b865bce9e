"""The command line, `modelpress`: runs the service, or is a client of one.

A failure is one readable paragraph on stderr, never a traceback. Exit codes: 0 done; 1 failed; 2 asked for something
that cannot be, such as a recipe that is refused; 130 interrupted.
"""

from app.cli.main import main

__all__ = ["main"]
