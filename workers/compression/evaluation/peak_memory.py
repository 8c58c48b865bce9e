"""The memory that a model takes where somebody opens and runs it with stock transformers.

    peak_memory([original, package], trusted=[package], prompt=512, new_tokens=32)      # bytes of each

A fresh process is measured, since what a process that compresses has allocated says nothing of that. Its figure is the
whole: Python and the libraries take some 400 MB of it, the model's files as far as they are read into memory count too.
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
    """The peak of each model, in bytes, one after the other: of resident memory, or of the device's where that is none
    of the CPU.

    The code that lies beside the weights is run only for models in `trusted`. None stands for a model that did not open
    or run, or whose process was killed for its memory. `timeout` is in seconds, for all; where it passes, all are None.
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
