"""Which commit, libraries and hardware a run is made with."""

import os
import platform
import subprocess
from importlib.metadata import version

import torch
from pydantic import Field

from bench.experiment import Strict

LIBRARIES = ("torch", "transformers", "numpy", "safetensors")


class Machine(Strict):
    """The hardware of a run."""

    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None = Field(None, description="null: none was used")


def this_machine() -> Machine:
    """Return the hardware that this process sees."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cpu=processor(), cores=len(os.sched_getaffinity(0)), memory_bytes=memory, gpu=gpu)


def processor() -> str:
    """Return the processor's name as /proc/cpuinfo has it, or its architecture where there is no such file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a device, not a path of ours
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def versions() -> dict[str, str]:
    """Return the releases of Python and of the libraries that decide the figures."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def commit() -> str:
    """Return the abbreviated hash of the commit that is checked out."""
    return _git("rev-parse", "--short", "HEAD")


def dirty() -> bool:
    """Return whether the tree differs from its commit, results and what is rendered of them aside."""
    return bool(_git("status", "--porcelain", "--", ".", ":!bench/results", ":!bench/RESULTS.md", ":!docs"))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
