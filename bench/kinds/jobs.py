"""Whole jobs by way of the service: recipes posted over HTTP, and what their reports say.

A service is started for the occasion, with servers and a data directory of its own.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator

from app.serve import running_service
from app.settings import Settings
from bench.experiment import Case, Experiment, Place, Row, Strict, Table
from bench.formatting import duration, optional
from bench.texts import Piece
from demo.models import bundled
from modelpress.client import Client
from modelpress.contract.job import Comparison, Job
from modelpress.contract.recipe import Recipe

Number = TypeVar("Number", int, float)

LOCAL = "local:"
MODEL = f"{LOCAL}model.gguf"
"""What recipes call the model that comes along."""


class Posted(Case):
    """A job: its recipe, without the model where it is the one that comes along."""

    recipe: dict[str, Any] = Field(description="the body of POST /jobs; texts of the experiment are 'local:NAME.txt'")

    @field_validator("recipe")
    @classmethod
    def check_recipe(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        Recipe.model_validate({"model": MODEL} | recipe)
        return recipe


class OnText(Strict):
    """How original and result predict one text."""

    before: float = Field(description="the original's perplexity")
    times: float = Field(description="the result's, as a multiple of it")
    divergence: float | None = Field(None, description="KL(original ‖ result), mean in nats per token")
    agreement: float | None = Field(None, description="share of tokens for which both hold the same one most likely")


class Rounded(Strict):
    """The main checkpoint after a format has rounded it."""

    bytes: int
    times: dict[str, float] = Field(description="for each text its perplexity, as a multiple of the main checkpoint's")


class Outcome(Strict):
    """One checkpoint. Pairs are (before, after)."""

    ratio: float = Field(description="stored parameters before / after, as reached")
    method: str = Field(description="the recipe's, or the one that `auto` took")
    texts: dict[str, OnText]
    parameters: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = Field(None, description="of the stored tensors")
    formats: dict[str, Rounded] = Field(default_factory=dict, description="of the recipe, those that round")
    prefill: tuple[float, float] | None = Field(None, description="tokens per second, reading")
    decode: tuple[float, float] | None = Field(None, description="tokens per second, writing")
    peak_memory: tuple[int, int] | None = Field(None, description="bytes, of a process that opens and runs it")


class JobRow(Row):
    """The result of one job: an outcome for each of the recipe's ratios."""

    outcomes: tuple[Outcome, ...] = Field(min_length=1)
    seconds: float | None = Field(description="from the claim to the end")
    stages: dict[str, float] = Field(default_factory=dict, description="seconds of each stage, as far as seen")


class Jobs(Experiment[Posted, JobRow]):
    """Jobs of the service."""

    row: ClassVar[type[Row]] = JobRow

    kind: Literal["jobs"]
    texts: dict[str, Piece] = Field(default_factory=dict, description="files of the service's data root, by name")

    def measure(self, cases: Sequence[Posted], place: Place) -> Iterator[JobRow]:
        """Post one job after another to a service on a free port."""
        roots = place.scratch / "models", place.scratch / "texts"
        self._provide(*roots, place.data)
        settings = Settings(
            data_dir=place.scratch / "service",
            database_url=None,
            redis_url=None,
            port=0,
            model_roots=roots[:1],
            data_roots=roots[1:],
            hub_enabled=False,
        )
        with ExitStack() as stack:
            service = stack.enter_context(running_service(settings))
            client = stack.enter_context(Client(service.address))
            for case in cases:
                yield self._row(case, *followed(client, case, service.check))

    def _provide(self, models: Path, texts: Path, data: Path) -> None:
        """Put the model and the texts where the service may open them."""
        original = bundled().path
        assert original is not None, "the model that comes along is a file"
        models.mkdir()
        texts.mkdir()
        shutil.copy(original, models / MODEL.removeprefix(LOCAL))
        for name, piece in self.texts.items():
            text = piece.read(data)
            part = text[int(piece.start * len(text)) : int(piece.stop * len(text))]
            (texts / f"{name}.txt").write_text(part, encoding="utf-8")

    def _row(self, case: Posted, job: Job, stages: Mapping[str, float]) -> JobRow:
        ended, started = job.timestamps.succeeded or job.timestamps.failed, job.timestamps.running
        assert job.metrics is not None, f"{case.name} ended without metrics: {job.error}"
        results = [(each.method, each.metrics) for each in job.sweep] or [(str(job.recipe.method), job.metrics)]
        return JobRow(
            case=case.name,
            outcomes=tuple(outcome(method, metrics) for method, metrics in results),
            seconds=(ended - started).total_seconds() if ended and started else None,
            stages=dict(stages),
        )

    def table(self, rows: Sequence[JobRow]) -> Table:
        """Return a row for each job, ratio and text."""
        header = ("job", "ratio", "MB", "time", "text", "before", "times", "KL, nats", "same top token", "rounded")
        cells = (_cells(row, each, name) for row in rows for each in row.outcomes for name in each.texts)
        return Table(header, tuple(map(tuple, cells)))


def followed(client: Client, case: Posted, check: Callable[[], None]) -> tuple[Job, dict[str, float]]:
    """Post the case's recipe and wait for the job's end; return it, and the seconds spent in each stage."""
    posted = client.submit(Recipe.model_validate({"model": MODEL} | case.recipe))
    seconds: dict[str, float] = {}
    seen = time.monotonic()
    for job in client.wait(posted.id):
        check()
        now = time.monotonic()
        if job.stage is not None:
            seconds[str(job.stage)] = seconds.get(str(job.stage), 0.0) + now - seen
        seen = now
    return job, seconds


def outcome(method: str, metrics: Comparison) -> Outcome:
    """Return the figures of one checkpoint."""
    before, after = metrics.before, metrics.after
    return Outcome(
        ratio=metrics.ratio,
        method=method,
        texts={
            name: OnText(
                before=before.perplexity[name],
                times=after.perplexity[name] / before.perplexity[name],
                divergence=after.kl_divergence[name],
                agreement=after.top1_agreement[name],
            )
            for name in before.perplexity
        },
        parameters=(before.parameters, after.parameters),
        bytes=(before.bytes, after.bytes),
        formats={
            name: Rounded(
                bytes=rounded.bytes,
                times={text: found / after.perplexity[text] for text, found in rounded.perplexity.items()},
            )
            for name, rounded in metrics.formats.items()
        },
        prefill=_pair(before.prefill_tokens_per_second, after.prefill_tokens_per_second),
        decode=_pair(before.decode_tokens_per_second, after.decode_tokens_per_second),
        peak_memory=_pair(before.peak_memory_bytes, after.peak_memory_bytes),
    )


def _pair(before: Number | None, after: Number | None) -> tuple[Number, Number] | None:
    return None if before is None or after is None else (before, after)


def _cells(row: JobRow, each: Outcome, name: str) -> Iterator[str]:
    first = name == next(iter(each.texts))
    text = each.texts[name]
    sizes = [
        ("", each.bytes[1] if each.bytes else None),
        *((f"{form} ", it.bytes) for form, it in each.formats.items()),
    ]
    yield row.case if first else ""
    yield f"{each.ratio:.3f}" if first else ""
    yield ", ".join(f"{form}{size / 1e6:.0f}" for form, size in sizes if size is not None) if first else ""
    yield duration(row.seconds) if first else ""
    yield f"`{name}`"
    yield f"{text.before:.2f}"
    yield f"{text.times:.2f}"
    yield optional(text.divergence, ".3f")
    yield optional(text.agreement, ".1%")
    yield ", ".join(f"{form} × {rounded.times[name]:.3f}" for form, rounded in each.formats.items())
