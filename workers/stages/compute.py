"""Where the stages compute, and in which precision."""

from pathlib import Path

import torch

from workers.compression.models.streamed import StreamedModel
from workers.stages.context import Context


def open_model(context: Context, directory: Path) -> StreamedModel:
    """A model on the assignment's device. Moments and solutions are gathered and found in higher precision anyway."""
    place = device(context)
    return StreamedModel.open(directory, device=place, dtype=dtype(place))


def device(context: Context) -> torch.device:
    """The device of the assignment; `auto` takes a GPU where there is one."""
    wanted = context.assignment.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def processes(context: Context) -> int:
    """How many may train together: as many as the assignment says, or one for each GPU that it leaves to be chosen."""
    asked = context.assignment.processes
    if device(context).type != "cuda":
        return asked or 1
    chosen = 1 if device(context).index is not None else torch.cuda.device_count()
    return min(asked or chosen, chosen)


def dtype(place: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, which is several times faster; float32 elsewhere."""
    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Older releases of torch do not say what the processor can do.
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32
