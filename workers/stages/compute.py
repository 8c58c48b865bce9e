"""The device, the precision and the number of processes that the stages compute with."""

from pathlib import Path

import torch

from workers.compression.models.streamed import StreamedModel
from workers.stages.context import Context


def open_model(context: Context, directory: Path) -> StreamedModel:
    """Open the model in `directory` on the assignment's device, in the precision of `dtype`.

    Second moments and solutions of linear systems are computed in higher precision regardless.
    """
    place = device(context)
    return StreamedModel.open(directory, device=place, dtype=dtype(place))


def device(context: Context) -> torch.device:
    """Return the assignment's device; `auto` means a GPU if there is one, otherwise the CPU."""
    wanted = context.assignment.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def processes(context: Context) -> int:
    """Return how many processes may train together.

    This is the assignment's number, or one for each available GPU where the assignment leaves it open. On a GPU it
    never exceeds the number of GPUs, and it is 1 if the assignment names one GPU.
    """
    asked = context.assignment.processes
    if device(context).type != "cuda":
        return asked or 1
    chosen = 1 if device(context).index is not None else torch.cuda.device_count()
    return min(asked or chosen, chosen)


def dtype(place: torch.device) -> torch.dtype:
    """Return the dtype to compute in: bfloat16 if the hardware multiplies it natively, otherwise float32."""
    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Older releases of torch do not say what the processor can do.
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32
