"""What a worker offers: the names by which a recipe can ask for it. Found without torch."""

import os
from pathlib import Path

from app.settings import Settings

CPU, GPU = "cpu", "gpu"
GPU_NODES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


def device_class(settings: Settings) -> str:
    """Return what the worker computes on: `cpu` or `gpu`."""
    if settings.device == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        return GPU if not hidden and any(node.exists() for node in GPU_NODES) else CPU
    return CPU if settings.device == "cpu" else GPU


def labels(settings: Settings) -> tuple[str, ...]:
    """Return every `device` of a recipe that this worker takes: its class, and the operator's labels."""
    return tuple(dict.fromkeys((device_class(settings), *settings.labels)))
