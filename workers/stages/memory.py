"""Memory of the worker: how much is free, and whether a whole model fits.

Compression streams the model block by block. Speed, peak memory, text generation and tasks need all of it at once.
"""

import ctypes
import gc

import psutil
import torch

from workers.compression.models.streamed import StreamedModel
from workers.container import left_in_container
from workers.stages.context import Context

BESIDES = 1.25
"""Memory of a running model as a multiple of its weights, for activations, the key/value cache and copied tensors."""


def holds(context: Context, model: StreamedModel) -> bool:
    """Return whether the whole model fits into the memory that is left, in its dtype and on its device."""
    free = left_on_gpu(model.device) if model.device.type == "cuda" else left(context.assignment.memory_bytes)
    return BESIDES * model.inventory.total_parameters * model.dtype.itemsize < free


def for_opening(context: Context, size: int) -> int | None:
    """Return how many bytes of weights a fresh process may hold at a time to open a model of `size` bytes.

    None means that it may hold all of them.
    """
    free = left(context.assignment.memory_bytes)
    return None if BESIDES * size < free else max(free // 2, 1)


def give_back() -> None:
    """Return freed memory to the operating system, if the C library offers `malloc_trim`."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def left(limit: int | None) -> int:
    """Return the bytes that this process may still allocate.

    They are counted against `limit`, the operator's limit, if there is one; otherwise against the machine and the
    container.
    """
    if limit is not None:
        return limit - int(psutil.Process().memory_info().rss)
    return min(int(psutil.virtual_memory().available), left_in_container())


def left_on_gpu(device: torch.device) -> int:
    """Return the bytes of GPU memory that this process may still allocate, including those that torch caches unused."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
