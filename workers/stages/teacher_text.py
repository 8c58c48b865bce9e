"""Have the original write the text of `teacher:`. Each batch is durable, so a new attempt continues after the last one.

If both calibration and distillation ask for it, they share one text; the one that needs less reads its beginning.
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

from modelpress.contract.fields import TEACHER
from workers.compression.teacher_text import Sampling, sample
from workers.stages import compute, inspect, names
from workers.stages.context import Context

NAME = names.CALIBRATE
COST = "teacher_text.json"
TOKENS, SECONDS = "tokens", "seconds"
QUIET_SECONDS = 1.0
"""Shortest time between two progress reports."""


@dataclass(frozen=True)
class Cost:
    """The number of tokens that the original wrote, and the seconds that it took in all attempts together."""

    tokens: int
    seconds: float


def written(context: Context, tokenizer: Any) -> Tensor:
    """Return the whole text as token ids [tokens] of int64, first writing the batches that no attempt has stored."""
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
    """Return the number of sequences of the text and the number of tokens in each.

    Raises:
        ValueError: the recipe does not use `teacher:`.
    """
    asked = context.assignment.recipe.teacher_text
    if asked is None:
        raise ValueError(f"no section of the recipe reads {TEACHER}")
    return asked


def write(context: Context, tokenizer: Any, sampling: Sampling, start: int) -> None:
    """Write the batches from number `start` on, with the whole original in memory."""
    sequences, length = size(context)
    model = compute.open_model(context, inspect.model_dir(context)).whole()
    before = start * sampling.batch * length
    meter = WritingProgress(context, sequences * length, before)
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


class WritingProgress:
    """Reports how many tokens are written, and how many per second."""

    def __init__(self, context: Context, total: int, before: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.context = context
        self.total = total
        self.before = before
        self.finished = before
        self.clock = clock
        self.began = clock()
        self.reported = self.began

    def running(self, tokens: int) -> None:
        """Report progress, at most once in QUIET_SECONDS, when the current batch has reached `tokens` tokens."""
        now, done = self.clock(), self.finished + tokens
        if now - self.reported < QUIET_SECONDS:
            return
        self.reported = now
        pace = (done - self.before) / (now - self.began)
        detail = f"the original writes text, {done:,} of {self.total:,} tokens, {pace:.0f} per second"
        self.context.progress(done / self.total, detail)

    def finish(self, tokens: int) -> None:
        """Count a finished batch of `tokens` tokens."""
        self.finished += tokens


def cost_of(context: Context) -> Cost | None:
    """Return the cost of the text of `teacher:`, or None if the recipe does not use it."""
    path = context.results[names.CALIBRATE] / COST
    return Cost(**json.loads(path.read_text())) if path.exists() else None


def read(path: Path) -> tuple[Tensor, float]:
    """Return the token ids [sequences, length] of a stored batch, and the seconds that it took."""
    with safe_open(path, framework="pt") as file:
        tokens: Tensor = file.get_tensor(TOKENS)
        return tokens, float(file.metadata()[SECONDS])


def part(context: Context, number: int) -> Path | None:
    """Return the file of the batch `number`, or None if no attempt has stored it."""
    return context.bench.finished_part(NAME, file_name(number))


def file_name(number: int) -> str:
    """Return the name of the file of the batch `number`."""
    return f"teacher-text-{number:05d}.safetensors"
