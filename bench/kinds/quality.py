"""How much worse a model predicts after compression, and how much of that training wins back.

Each case compresses the same original by a method and a ratio, perhaps calibrated on other text, perhaps trained
afterwards, and is judged on texts by its perplexity as a ratio to the original's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import AutoTokenizer

from bench.clock import timed
from bench.engine import Compressed, Original, Training, compressed, perplexities, trained
from bench.experiment import Case, Experiment, Place, Row, Strict, Table
from bench.formatting import digits
from bench.models import BUNDLED, model_directory
from bench.texts import Piece, Reader
from workers.compression.models.streamed import StreamedModel

ORIGINAL = "original"
"""The case that every other one is measured against: nothing is compressed."""


class Calibration(Strict):
    """Text that the methods see: `sequences` windows of `length` tokens, equally many of each text."""

    texts: tuple[str, ...] = Field(min_length=1)
    sequences: int = 32
    length: int = 1024


class Judged(Strict):
    """Text that the models are judged on: `windows` windows of `length` tokens of each text, on their own."""

    texts: tuple[str, ...] = Field(min_length=1)
    windows: int = 20
    length: int = 1024


class Compression(Case):
    """One way to a smaller model."""

    method: str = Field(description="a recipe's method, 'drop' or 'tqcompressor-style'; see bench.engine")
    ratio: float = Field(gt=1, description="stored parameters before / after")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")
    calibrated_on: tuple[str, ...] | None = Field(None, description="texts instead of those of the experiment")
    training: Training | None = Field(None, description="distillation afterwards")
    judged_at: int = Field(1, ge=1, description="how often the training is judged, at equal distances")


class Point(Strict):
    """How a model predicts after some training."""

    tokens: int = Field(description="trained on so far; 0: not trained yet")
    ratios: dict[str, float] = Field(description="perplexity / the original's, for each text")


class Judgement(Row):
    """The result of one case."""

    ratio: float = Field(description="stored parameters before / after, as reached")
    points: tuple[Point, ...] = Field(min_length=1)
    perplexity: dict[str, float] | None = Field(None, description="for each text; of the original alone")
    seconds: dict[str, float | None] = Field(description="of measuring, choosing, fitting and training")
    removed: tuple[int, ...] = Field((), description="blocks that are gone, in the order in which they went")
    chosen: str | None = Field(None, description="the method that `auto` took")


class Quality(Experiment[Compression, Judgement]):
    """Perplexity after compression, with or without training."""

    row: ClassVar[type[Row]] = Judgement

    kind: Literal["quality"]
    model: str = BUNDLED
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    texts: dict[str, Piece]
    calibration: Calibration
    judged: Judged
    gap_of: str | None = Field(
        None, description="a case: the table shows each log-perplexity gap as a share of its gap"
    )

    @model_validator(mode="after")
    def check_texts(self) -> Self:
        named = {*self.calibration.texts, *self.judged.texts}
        for case in self.cases:
            named |= {*(case.calibrated_on or ()), *(case.training.texts if case.training else ())}
        if unknown := named - self.texts.keys():
            raise ValueError(f"no such texts: {', '.join(sorted(unknown))}")
        return self

    def measure(self, cases: Sequence[Compression], place: Place) -> Iterator[Judgement]:
        """Compress, train and judge each case; the original comes first."""
        directory = model_directory(self.model, place.scratch)
        model = StreamedModel.open(directory, dtype=getattr(torch, self.dtype))
        reader = Reader(self.texts, place.data, AutoTokenizer.from_pretrained(directory), model.whole(), self.seed)
        judged = {name: reader.windows(name, self.judged.windows, self.judged.length) for name in self.judged.texts}
        before = perplexities(model, judged)
        yield Judgement(
            case=ORIGINAL,
            ratio=1.0,
            points=(Point(tokens=0, ratios=dict.fromkeys(before, 1.0)),),
            perplexity=before,
            seconds={},
        )
        originals: dict[tuple[str, ...], Original] = {}
        for case in cases:
            texts = case.calibrated_on or self.calibration.texts
            if texts not in originals:
                ids = reader.mixture(texts, self.calibration.sequences, self.calibration.length)
                originals[texts] = Original(model, ids)
            yield _judged(case, originals[texts], reader, judged, before)

    def table(self, rows: Sequence[Judgement]) -> Table:
        """Return a row for each case: ratio reached, perplexity by text, and seconds."""
        texts, baseline = self.judged.texts, self._baseline(rows)
        tokens = any(row.points[-1].tokens for row in rows)
        header = ("case", "ratio", *(("tokens",) if tokens else ()), *texts)
        header = (*header, *((f"gap, {name}" for name in texts) if baseline else ()), "seconds")
        return Table(header, tuple(tuple(self._cells(row, tokens=tokens, baseline=baseline)) for row in rows))

    def _baseline(self, rows: Sequence[Judgement]) -> Mapping[str, float] | None:
        return next((row.points[0].ratios for row in rows if row.case == self.gap_of), None)

    def _cells(self, row: Judgement, *, tokens: bool, baseline: Mapping[str, float] | None) -> Iterator[str]:
        yield row.case + (": perplexity" if row.perplexity else f", took `{row.chosen}`" if row.chosen else "")
        yield f"{row.ratio:.3f}"
        if tokens:
            yield f"{row.points[-1].tokens:,}"
        for name in self.judged.texts:
            if row.perplexity is not None:
                yield f"{row.perplexity[name]:.2f}"
                continue
            shown = [digits(point.ratios[name]) for point in row.points]
            yield shown[0] if len(shown) == 1 else f"{shown[0]} → {shown[-1]}"
        if baseline:
            last = row.points[-1].ratios
            yield from (f"{math.log(last[name]) / math.log(baseline[name]) + 0.0:.2f}" for name in self.judged.texts)
        yield ", ".join(f"{name} {value:.0f}" for name, value in row.seconds.items() if value is not None)


def _judged(
    case: Compression, original: Original, reader: Reader, judged: Mapping[str, Tensor], before: Mapping[str, float]
) -> Judgement:
    smaller = compressed(original, case.method, case.ratio, case.options)
    points: list[Point] = []

    def judge(tokens: int, model: StreamedModel) -> None:
        after = perplexities(model, judged)
        points.append(Point(tokens=tokens, ratios={name: after[name] / before[name] for name in judged}))

    judge(0, smaller.model())
    seconds = dict(smaller.seconds)
    if case.training is not None:
        with timed(seconds, "train"):
            _train(case, case.training, smaller, reader, judge)
    return Judgement(
        case=case.name,
        ratio=smaller.ratio,
        points=tuple(points),
        seconds=dict(seconds),
        removed=smaller.removed,
        chosen=smaller.chosen,
    )


def _train(
    case: Compression,
    training: Training,
    smaller: Compressed,
    reader: Reader,
    judge: Callable[[int, StreamedModel], None],
) -> None:
    text = reader.mixture(training.texts, math.ceil(training.tokens / training.length), training.length)
    trained(smaller, text, training, case.judged_at, judge)
