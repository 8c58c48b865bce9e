"""Where the stages compute."""

import torch

from workers.stages.context import Context


def device(context: Context) -> torch.device:
    """The device of the assignment; `auto` takes a GPU where there is one."""
    wanted = context.assignment.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)
