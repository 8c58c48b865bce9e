"""The command line, `modelpress`, which runs the service or acts as its client.

A failure is one readable paragraph on stderr, never a traceback. Exit codes: 0 success; 1 failure; 2 a request that
cannot be met, such as a refused recipe; 3 a result that misses the recipe's gate; 4 a service or worker that has
failed, so that the same may succeed later; 130 interrupted.
"""

from modelpress.cli.main import main

__all__ = ["main"]
