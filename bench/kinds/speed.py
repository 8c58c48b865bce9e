"""Tokens per second of smaller models beside their original, in turns so that both meet the same machine.

Batch 1: reading a prompt of 512 tokens at once, and writing 32 tokens one by one. The values of weights do not matter
to speed, so that the methods get little text to fit to, and a model of random weights gets random factors.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from bench.engine import Original, compressed
from bench.experiment import Case, Experiment, Place, Row, Table
from bench.models import BUNDLED, RANDOM, model_directory
from bench.texts import PYTHON_DOCS, Piece, all_windows
from modelpress.spec.budgets import uniform_structures
from modelpress.spec.families import LowRankFamily
from workers.compression import structures
from workers.compression.drawing import evenly_spread
from workers.compression.evaluation.speed import Speed, speed
from workers.compression.models.streamed import StreamedModel

SEQUENCES, LENGTH = 4, 256


class Contestant(Case):
    """A compressed model in one dtype."""

    method: str
    ratio: float = Field(gt=1)
    options: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"]


class Pace(Row):
    """Median tokens per second of a model and of its original in the same run."""

    prefill: float = Field(description="reading a prompt")
    decode: float = Field(description="writing")
    original_prefill: float
    original_decode: float


class SpeedRace(Experiment[Contestant, Pace]):
    """Speed of compressed models against their original."""

    row: ClassVar[type[Row]] = Pace

    kind: Literal["speed"]
    model: str = BUNDLED
    rounds: int = Field(7, ge=1, description="turns of each model; the table has the median")

    def measure(self, cases: Sequence[Contestant], place: Place) -> Iterator[Pace]:
        """Race the cases of each dtype together against the original in that dtype."""
        directory = model_directory(self.model, place.scratch)
        ids = calibration(self.model, directory)
        for dtype in dict.fromkeys(case.dtype for case in cases):
            model = StreamedModel.open(directory, dtype=getattr(torch, dtype))
            runners: dict[str | None, PreTrainedModel] = {None: model.whole()}
            entered = [case for case in cases if case.dtype == dtype]
            for case in entered:
                runners[case.name] = smaller(case, model, ids)
            paces = race(runners, self.rounds)
            for case in entered:
                yield Pace(
                    case=case.name,
                    prefill=paces[case.name].prefill,
                    decode=paces[case.name].decode,
                    original_prefill=paces[None].prefill,
                    original_decode=paces[None].decode,
                )

    def table(self, rows: Sequence[Pace]) -> Table:
        """Return a row for each case: reading and writing, each also as a multiple of the original's."""
        header = ("model", "reading, tokens/s", "original", "times", "writing, tokens/s", "original", "times")
        return Table(
            header,
            tuple(
                (
                    row.case,
                    f"{row.prefill:,.0f}",
                    f"{row.original_prefill:,.0f}",
                    f"{row.prefill / row.original_prefill:.2f}",
                    f"{row.decode:.1f}",
                    f"{row.original_decode:.1f}",
                    f"{row.decode / row.original_decode:.2f}",
                )
                for row in rows
            ),
        )


def calibration(model: str, directory: Path) -> Tensor | None:
    """Return a little text [SEQUENCES, LENGTH] for the methods to fit to; None for a model of random weights."""
    if RANDOM.fullmatch(model):
        return None
    text = Piece(source=PYTHON_DOCS).read(directory)
    return evenly_spread(all_windows(AutoTokenizer.from_pretrained(directory), text, LENGTH), SEQUENCES)


def smaller(case: Contestant, model: StreamedModel, ids: Tensor | None) -> PreTrainedModel:
    """Return the case's model: compressed on token ids, or with random factors where there are none."""
    if ids is None:
        return randomly_factored(model, case)
    return compressed(Original(model, ids), case.method, case.ratio, case.options).model().whole()


def randomly_factored(model: StreamedModel, case: Contestant) -> PreTrainedModel:
    """Return the model with every matrix of a block as random pivoted factors, at the same ratio everywhere."""
    budget = round(model.inventory.total_parameters / case.ratio)
    family = LowRankFamily(factors_embedding=False, pivoted=True)
    forms = uniform_structures(model.inventory, family, budget)
    factored = model.whole()
    structures.replace(factored, {name: form.to_dict() for name, form in forms.items()})
    for parameter in factored.parameters():
        nn.init.normal_(parameter, std=0.02)
    return factored


def race(models: Mapping[str | None, PreTrainedModel], rounds: int) -> dict[str | None, Speed]:
    """Return the median speed of each model over several rounds, in each of which every model has a turn."""
    runs: dict[str | None, list[Speed]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            runs[name].append(speed(model, repeats=1))
    return {name: _median(found) for name, found in runs.items()}


def _median(runs: Sequence[Speed]) -> Speed:
    return dataclasses.replace(
        runs[0],
        prefill=statistics.median(run.prefill for run in runs),
        decode=statistics.median(run.decode for run in runs),
    )
