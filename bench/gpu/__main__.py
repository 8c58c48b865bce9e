"""Run every check and measurement; `results.json` is whole at any time.

python -m bench.gpu --out DIRECTORY             # on a GPU
python -m bench.gpu --rehearse --out DIRECTORY  # the same steps on the CPU, with tiny models

The steps run in a process of their own. One that dies, or whose card answers nothing any more, is followed by another,
which goes on with the next step.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.command import parser
from bench.gpu.results import Results

AGAIN = 75
"""Exit status of a process after which another one is to take the steps that are left."""

NOTHING_DONE = 2
"""Exit status where a process died before it began a step."""

GRACE = 20.0
"""Seconds after the end of the budget in which the process may still end by itself."""

KILLED = -9

ENVIRONMENT = {
    # Nothing outside can be reached there, and a name that is looked up is waited for.
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "PYTHONFAULTHANDLER": "1",
    # Read when cuBLAS is used first: `checks.resume` needs it.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""What the process that computes finds in its environment."""


def main(arguments: list[str]) -> int:
    """Run the steps that the command line asks for; return 0 if all of them ended well."""
    asked = parser(__doc__).parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    results = asked.out / "results.json"
    results.unlink(missing_ok=True)
    ends = time.time() + asked.budget
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        command = [sys.executable, "-m", "bench.gpu.steps", *arguments, "--scratch", scratch, "--ends", str(ends)]
        return supervise(command, results, ends + GRACE)


def supervise(command: Sequence[str], path: Path, ends: float) -> int:
    """Run a process that notes its steps in the file `path`, and others after it, until no step is left.

    Returns the exit status of the last one; NOTHING_DONE if it began no step.
    """
    begun = 0
    while True:
        status = _ended(command, ends - time.time())
        results = Results.load(path) if path.exists() else None
        died = results is not None and results.break_off(f"the process ended with status {status}")
        if status in (0, 1) and not died:
            return status
        if results is None or len(results.steps) == begun:
            print(f"the process ended with status {status}, and began no step", flush=True)
            return NOTHING_DONE
        if time.time() >= ends:
            return 1
        begun = len(results.steps)
        print("another process takes the steps that are left", flush=True)


def _ended(command: Sequence[str], seconds: float) -> int:
    """Return the exit status of a process, which is killed after so many seconds."""
    try:
        environment = os.environ | ENVIRONMENT
        return subprocess.run(command, timeout=max(seconds, 1.0), env=environment, check=False).returncode
    except subprocess.TimeoutExpired:
        return KILLED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
