"""Tokens per second of distillation beside a loop that does nothing but what must be done, in turns.

The bare loop is the teacher's forward pass, the student's forward and backward passes, clipping and a step of AdamW,
with the same batch, dtype and optimizer. Ours includes the checkpoint at the end of each turn.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from bench.experiment import Case, Experiment, Place, Row, Table
from bench.models import BUNDLED, model_directory
from bench.texts import Piece, all_windows
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings


class Loop(Case):
    """A shape of the training's batches. The student is the model without some of its middle blocks."""

    removed: int = Field(8, ge=1, description="blocks")
    batch_size: int = 4
    micro_batch_size: int = 2
    length: int = 512
    steps: int = Field(4, description="in each turn")
    turns: int = Field(5, ge=2, description="the first one warms up and does not count")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def settings(self) -> DistillationSettings:
        """Return the library's settings for all turns together."""
        return DistillationSettings(
            tokens=self.turns * self.steps * self.batch_size * self.length,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            interval=self.steps,
        )


class Throughput(Row):
    """Tokens per second of both loops over all turns that count, and the range of their quotient by turns."""

    ours: float
    bare: float
    slowest: float = Field(description="least quotient ours / bare of a turn")
    fastest: float = Field(description="greatest")


class TrainingSpeed(Experiment[Loop, Throughput]):
    """Speed of distillation against a bare training loop."""

    row: ClassVar[type[Row]] = Throughput

    kind: Literal["training_speed"]
    model: str = BUNDLED
    text: Piece

    def measure(self, cases: Sequence[Loop], place: Place) -> Iterator[Throughput]:
        """Train two students of the same original, a turn of the one and a turn of the other."""
        directory = model_directory(self.model, place.scratch)
        for case in cases:
            windows = all_windows(AutoTokenizer.from_pretrained(directory), self.text.read(place.data), case.length)
            yield _race(case, directory, windows)

    def table(self, rows: Sequence[Throughput]) -> Table:
        """Return a row for each case: tokens per second of both loops and their quotient."""
        header = ("training", "bare, tokens/s", "ours, tokens/s", "times", "by turns")
        return Table(
            header,
            tuple(
                (
                    row.case,
                    f"{row.bare:.0f}",
                    f"{row.ours:.0f}",
                    f"{row.ours / row.bare:.2f}",
                    f"{row.slowest:.2f} to {row.fastest:.2f}",
                )
                for row in rows
            ),
        )


def _race(case: Loop, directory: Path, windows: Tensor) -> Throughput:
    compute = None if case.dtype == "float32" else getattr(torch, case.dtype)
    teacher = StreamedModel.open(directory, dtype=compute or torch.float32).whole()
    settings = case.settings()
    race = Turns(bare_loop(teacher, student(directory, case.removed), windows, settings, compute))
    distil(teacher, student(directory, case.removed), windows, settings, compute_dtype=compute, observer=race)
    turns = race.turns[1:]
    tokens = len(turns) * case.steps * case.batch_size * case.length
    quotients = [theirs / our for our, theirs in turns]
    return Throughput(
        case=case.name,
        ours=tokens / sum(our for our, _ in turns),
        bare=tokens / sum(theirs for _, theirs in turns),
        slowest=min(quotients),
        fastest=max(quotients),
    )


class Turns(Observer):
    """Seconds of each turn of ours and of the bare loop, which takes its own whenever ours has saved a checkpoint."""

    def __init__(self, bare: Iterator[None]) -> None:
        self.turns: list[tuple[float, float]] = []
        self._bare = bare
        self._started = time.perf_counter()

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        """Note how long the turn took, and let the bare loop take one."""
        ended = time.perf_counter()
        next(self._bare)
        restarted = time.perf_counter()
        self.turns.append((ended - self._started, restarted - ended))
        self._started = restarted
        return checkpoint


def student(directory: Path, removed: int) -> PreTrainedModel:
    """Return the model in float32 without `removed` blocks of its middle."""
    model = StreamedModel.open(directory)
    first = (model.inventory.blocks - removed) // 2
    part = CompressedPart("removal", removed=tuple(range(first, first + removed)))
    return EditedModel(model, [part]).whole()


def bare_loop(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    text: Tensor,
    settings: DistillationSettings,
    compute: torch.dtype | None,
) -> Iterator[None]:
    """Train on windows [N, T] as one writes it by hand; yield after every `settings.interval` steps."""
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True)
    for step in range(settings.steps(text.shape[1])):
        optimizer.zero_grad()
        chosen = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size) % len(text)
        for ids in torch.split(text[chosen], settings.micro_batch_size):
            with torch.no_grad():
                wanted = teacher(ids, use_cache=False).logits.float().log_softmax(-1)
            with torch.autocast("cpu", compute, enabled=compute is not None):
                logits = student(ids, use_cache=False).logits
            found = logits.float().log_softmax(-1)
            lost = functional.kl_div(found, wanted, reduction="sum", log_target=True)
            torch.autograd.backward(lost / (settings.batch_size * text.shape[1]))
        nn.utils.clip_grad_norm_(student.parameters(), settings.max_gradient_norm)
        optimizer.step()
        if (step + 1) % settings.interval == 0:
            yield
