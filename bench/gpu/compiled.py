"""What `torch.compile` would save: docs/decisions, 010, says why jobs do not use it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.gpu.measures import seconds_of
from bench.gpu.results import Figures
from bench.gpu.setting import Setting
from bench.race import now, student_without
from workers.compression.training import split


def compiled(setting: Setting, found: Figures) -> None:
    """Time forward and backward passes of SmolLM2-135M with blocks that torch compiles, against those as they are."""
    model = student_without(setting.small, 1, setting.device)
    model.requires_grad_(True)
    batch, length = setting.sizes.batch
    ids = setting.windows(max(1, batch // 2), length, model.config.vocab_size).to(setting.device)
    plain = seconds_of(_pass(setting, model, ids), repeats=3)
    found["plain_seconds"] = plain
    blocks: list[Any] = list(split.blocks(model))
    for block in blocks:
        # A rehearsal compiles nothing, which would take minutes on a CPU, but takes the same way to it.
        nn.Module.compile(block, backend="inductor" if setting.device.type == "cuda" else "eager")
    started = now()
    _pass(setting, model, ids)()
    found["compiling_seconds"] = now() - started
    found["compiled_seconds"] = seconds_of(_pass(setting, model, ids), repeats=3)
    found["plain_over_compiled"] = plain / float(found["compiled_seconds"])


def _pass(setting: Setting, model: PreTrainedModel, ids: Tensor) -> Callable[[], None]:
    """Return a function that takes a forward and a backward pass through the decoder, as training does."""

    def once() -> None:
        model.zero_grad()
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.device.type == "cuda"):
            states = split.states(model, ids)
        states.float().square().mean().backward()

    return once
