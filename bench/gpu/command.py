"""The command line, for the process that supervises and for the one that computes."""

import argparse
import os
from pathlib import Path

BUDGET = 440.0
"""Seconds after which no step begins, and the running one ends."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of what is asked for."""
    found = argparse.ArgumentParser(prog="python -m bench.gpu", description=description)
    found.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="where results.json goes")
    found.add_argument("--rehearse", action="store_true", help="run on the CPU, with tiny models")
    found.add_argument("--carried", type=Path, default=Path(".gpu"), help="what `python -m bench.gpu.carry` has made")
    found.add_argument("--keep", type=Path, help="directory in which the weights wait for a later call")
    found.add_argument("--only", nargs="*", help="names of steps")
    found.add_argument("--heal", type=float, metavar="SECONDS", help="instead of the steps, distil for so long")
    found.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together")
    return found
