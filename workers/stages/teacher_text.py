"""The text of `teacher:`, written by the original itself. Each batch is durable, so a new attempt goes on behind it.

Calibration and distillation that both ask for it share one text: what is read less of is read from its beginning.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from app.contract.recipe import TEACHER
from workers.compression.teacher_text import Sampling, sample
from workers.stages import compute, inspect, names
from workers.stages.context import Context

NAME = names.CALIBRATE
COST = "teacher_text.json"
TOKENS, SECONDS = "tokens", "seconds"
QUIET_SECONDS = 1.0
"""Progress is told no more often."""


@dataclass(frozen=True)
class Cost:
    """How many tokens the original wrote, and how long that took in all attempts together."""

    tokens: int
    seconds: float


def written(context: Context, tokenizer: Any) -> Tensor:
    """All of the text, [tokens] of int64; what no attempt has written yet is written now."""
    sampling = Sampling()
    sequences, length = size(context)
    batches = math.ceil(sequences / sampling.batch)
    start = next((i for i in range(batches) if part(context, i) is None), batches)
    if start < batches:
        if start > 0:
            context.resumed()
        write(context, tokenizer, sampling, start)
    found = [read(path) for path in (part(context, index) for index in range(batches)) if path is not None]
    cost = Cost(sequences * length, sum(seconds for _, seconds in found))
    (context.bench.begin(NAME) / COST).write_text(json.dumps(asdict(cost)))
    return torch.cat([tokens.flatten() for tokens, _ in found])


def size(context: Context) -> tuple[int, int]:
    """Sequences, and tokens in each. Raises ValueError for a recipe without such text."""
    asked = context.assignment.recipe.teacher_text
    if asked is None:
        raise ValueError(f"nothing in the recipe reads {TEACHER}")
    return asked


def write(context: Context, tokenizer: Any, sampling: Sampling, start: int) -> None:
    """Write the batches from number `start` on. The original is in memory as a whole meanwhile."""
    sequences, length = size(context)
    model = compute.open_model(context, inspect.model_dir(context)).whole()
    before = start * sampling.batch * length
    meter = Meter(context, sequences * length, before)
    began = time.monotonic()
    batches = sample(
        model,
        tokenizer,
        sequences,
        length,
        sampling,
        seed=context.assignment.recipe.seed,
        start=start,
        progress=meter.running,
    )
    for number, tokens in enumerate(batches, start):
        path = context.bench.begin(NAME) / file_name(number)
        save_file({TOKENS: tokens}, path, metadata={SECONDS: str(time.monotonic() - began)})
        context.bench.finish_part(path)
        meter.finish(tokens.numel())
        began = time.monotonic()


class Meter:
    """Tells how many tokens are written and how fast."""

    def __init__(self, context: Context, total: int, before: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.context = context
        self.total = total
        self.before = before
        self.finished = before
        self.clock = clock
        self.began = clock()
        self.told = self.began

    def running(self, tokens: int) -> None:
        """`tokens`: of the batch that is being written."""
        now, done = self.clock(), self.finished + tokens
        if now - self.told < QUIET_SECONDS:
            return
        self.told = now
        pace = (done - self.before) / (now - self.began)
        detail = f"the original writes text, {done:,} of {self.total:,} tokens, {pace:.0f} per second"
        self.context.progress(done / self.total, detail)

    def finish(self, tokens: int) -> None:
        self.finished += tokens


def cost_of(context: Context) -> Cost | None:
    """What `teacher:` took; None where the recipe does not ask for it."""
    path = context.results[names.CALIBRATE] / COST
    return Cost(**json.loads(path.read_text())) if path.exists() else None


def read(path: Path) -> tuple[Tensor, float]:
    """The tokens of a batch, [sequences, length], and the seconds that it took."""
    with safe_open(path, framework="pt") as file:
        tokens: Tensor = file.get_tensor(TOKENS)
        return tokens, float(file.metadata()[SECONDS])


def part(context: Context, number: int) -> Path | None:
    return context.bench.finished_part(NAME, file_name(number))


def file_name(number: int) -> str:
    return f"teacher-text-{number:05d}.safetensors"
