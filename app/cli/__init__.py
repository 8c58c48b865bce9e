"""The command line, `modelpress`, which runs the service or acts as its client.

A failure is one readable paragraph on stderr, never a traceback. Exit codes: 0 success; 1 failure; 2 a request that
cannot be met, such as a refused recipe; 130 interrupted.
"""

from app.cli.main import main

__all__ = ["main"]
