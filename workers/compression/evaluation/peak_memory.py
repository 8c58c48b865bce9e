"""Peak memory of a model that is opened and run with stock transformers.

    peak_memory([original, package], trusted=[package], prompt=512, new_tokens=32)      # bytes of each

A fresh process is measured, because the memory of a compressing process says nothing about it. The figure is the whole
process: Python and the libraries take about 400 MB of it, and files count as far as they are read into memory.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

_SCRIPT = Path(__file__).with_name("open_and_run.py")


def peak_memory(
    directories: Sequence[Path],
    *,
    trusted: Collection[Path] = (),
    prompt: int = 512,
    new_tokens: int = 32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    timeout: float | None = None,
) -> list[int | None]:
    """Return each model's peak memory in bytes, measured one after the other in fresh processes.

    On a CPU it is the resident memory of the process, on a GPU the memory allocated there. An entry is None where the
    model did not open or run, or its process was killed for its memory.

    Args:
        directories: the checkpoints to open.
        trusted: those among them whose own Python code may run.
        prompt: tokens that are read at once.
        new_tokens: tokens that are generated afterwards.
        dtype: precision in which the models are opened.
        device: where they run.
        timeout: seconds for all models together; when they have passed, every entry is None.
    """
    request = {
        "directories": [str(directory.resolve()) for directory in directories],
        "trusted": [str(directory.resolve()) for directory in trusted],
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "prompt": prompt,
        "new_tokens": new_tokens,
    }
    with tempfile.TemporaryDirectory(prefix="memory-") as elsewhere:
        environment = {
            **os.environ,
            "HF_HOME": elsewhere,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, "-I", str(_SCRIPT), json.dumps(request)]
        try:
            process = subprocess.run(
                command, cwd=elsewhere, env=environment, stdout=subprocess.PIPE, text=True, timeout=timeout, check=True
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            return [None] * len(directories)
    found: list[int | None] = json.loads(process.stdout)
    return found
