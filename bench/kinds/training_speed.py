"""Tokens per second of distillation beside a loop that does nothing but what must be done, in turns.

The bare loop is the teacher's forward pass, the student's forward and backward passes, clipping and a step of AdamW,
with the same batch, dtype and optimizer. Ours includes the checkpoint at the end of each turn.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer

from bench.experiment import Case, Experiment, Place, Row, Table
from bench.models import BUNDLED, model_directory
from bench.race import Turns, bare_loop, student_without
from bench.texts import Piece, all_windows
from workers.compression.models.streamed import StreamedModel
from workers.compression.training.distillation import distil
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
    race = Turns(bare_loop(teacher, student_without(directory, case.removed), windows, settings, compute))
    distil(teacher, student_without(directory, case.removed), windows, settings, compute_dtype=compute, observer=race)
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
