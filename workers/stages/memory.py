"""Whether a whole model fits into memory. All that is needed to compress one streams it; a few measurements do not."""

import ctypes
import gc
from pathlib import Path

import psutil
import torch

from workers.compression.models.streamed import StreamedModel
from workers.stages.context import Context

BESIDES = 1.25
"""What a model takes when it runs, as a multiple of its weights: activations, a cache, the copy of a tensor."""

CGROUP = Path("/sys/fs/cgroup")


def holds(context: Context, model: StreamedModel) -> bool:
    """Whether the model fits whole into what this process may still take, in its dtype and on its device."""
    free = left_on_gpu(model.device) if model.device.type == "cuda" else left(context.assignment.memory_bytes)
    return BESIDES * model.inventory.total_parameters * model.dtype.itemsize < free


def for_opening(context: Context, size: int) -> int | None:
    """How many bytes of weights another process may hold at a time to open a model of this size; None: all of them."""
    free = left(context.assignment.memory_bytes)
    return None if BESIDES * size < free else max(free // 2, 1)


def give_back() -> None:
    """Returns to the system what is free but kept for later; nothing happens where the C library knows no such call."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def left(limit: int | None) -> int:
    """Bytes that this process may still take: of the operator's limit, or of what machine and container have."""
    if limit is not None:
        return limit - int(psutil.Process().memory_info().rss)
    return min(int(psutil.virtual_memory().available), left_in_container())


def left_on_gpu(device: torch.device) -> int:
    """Bytes of a GPU that this process may still take: what is free, and what it keeps for itself unused."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def left_in_container(cgroup: Path = CGROUP) -> int:
    """What the control group of a container leaves; without a limit, more than any machine has."""
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return 2**63
    return 2**63 if limit == "max" else int(limit) - int(used) + droppable(cgroup)


def droppable(cgroup: Path) -> int:
    """Bytes that count as used and are given back when needed: of files that were read or written a while ago."""
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
