"""The JSON lines that the supervisor and the computing child exchange."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Comparison, SweepResult
from modelpress.contract.recipe import Recipe


class Message(BaseModel):
    """Base of all messages: immutable, and strict about unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


FETCH_STAGE = "fetch"
"""Name of the stage that fetches model and texts, before the computing child starts."""

START_STAGE = "start"
"""Name of the stage in which the computing child starts."""

FETCH_SHARE = 0.02
"""Fraction of the job's progress that fetching takes; the computing child reports the rest."""

LONGEST_TEXT = 10_000
SURROGATES = re.compile("[\ud800-\udfff]")


def storable(text: str) -> str:
    """Return a text that may come from a model or its files, as PostgreSQL can store it, and not more than it should:
    without NUL, halves of surrogate pairs, and what is beyond LONGEST_TEXT characters.
    """
    return SURROGATES.sub("\ufffd", text[:LONGEST_TEXT].replace("\0", "\ufffd"))


Text = Annotated[str, AfterValidator(storable)]


class Expected(Message):
    """How long the stages of a job are expected to take."""

    seconds: dict[str, float] = Field(default_factory=dict, description="of each stage, over all ratios")
    measured: bool = Field(False, description="whether jobs like this one have taken them; else the recipe tells")

    @property
    def starting(self) -> float:
        """The seconds until the first stage of the computing child."""
        return self.seconds.get(START_STAGE, 0.0)

    @property
    def left(self) -> float | None:
        """The seconds behind the fetching; None where nothing is known."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage != FETCH_STAGE) or None


class Assignment(Message):
    """One attempt at a job, with everything that the child may know."""

    job_id: str
    attempt: int
    recipe: Recipe
    model_path: Path = Field(description="a directory with safetensors, or a .gguf file")
    revision: str | None = Field(None, description="commit of a hub model")
    texts: dict[str, Path] = Field(description="file of each dataset: .txt, or .jsonl with one document a line")
    text_revisions: dict[str, str] = Field(default_factory=dict, description="commit of each hub dataset")
    work_dir: Path = Field(description="the job's directory; each attempt writes to a subdirectory named by its number")
    device: str
    threads: int | None
    processes: int | None = Field(None, description="processes that train together; None: one for each GPU, or one")
    tasks_dir: Path | None = Field(None, description="the operator's own tasks for lm-eval")
    memory_bytes: int | None = Field(None, description="memory limit of the child in bytes; None: the machine's memory")
    expected: Expected = Field(Expected(), description="how long the stages take; empty: as the recipe alone tells")


class ProgressReport(Message):
    """The progress of the job while a stage runs."""

    event: Literal["progress"] = "progress"
    stage: Text
    fraction: float = Field(ge=0, le=1, description="finished fraction of the whole job")
    detail: Text | None = None
    seconds_left: float | None = None
    stage_seconds_left: float = Field(0.0, description="how many of them are left of this stage")


class ResumedReport(Message):
    """The stage, and possibly the block, at which this attempt continues from results of earlier ones."""

    event: Literal["resumed"] = "resumed"
    stage: Text
    block: int | None = None


class MetricReport(Message):
    """A figure that was measured on the way."""

    event: Literal["metric"] = "metric"
    step: int
    name: Text
    value: float | None = Field(description="null if it is not finite")


class DoneReport(Message):
    """The result of a job whose package is complete."""

    event: Literal["done"] = "done"
    package: Path
    achieved_ratio: float
    metrics: Comparison
    sweep: tuple[SweepResult, ...] = Field((), description="one result for each ratio, if the recipe lists ratios")
    missed: Text | None = Field(None, description="the bounds of the recipe's gate that the result misses")


class ErrorReport(Message):
    """The failure that ends the attempt."""

    event: Literal["error"] = "error"
    code: FailureCode
    message: Text
    stage: Text | None = None


Report = Annotated[
    ProgressReport | ResumedReport | MetricReport | DoneReport | ErrorReport, Field(discriminator="event")
]
REPORT: TypeAdapter[Report] = TypeAdapter(Report)


class AttemptFailed(Exception):
    """The attempt cannot continue; the code says why, and therefore whether another attempt can help."""

    def __init__(self, code: FailureCode, message: str, stage: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.stage = stage

    @classmethod
    def reported(cls, report: ErrorReport) -> Self:
        """Return the exception for a failure that another process has reported."""
        return cls(report.code, report.message, report.stage)

    def report(self, stage: str | None = None) -> ErrorReport:
        """Return the failure as a message to the supervisor; `stage` is used if the exception names none."""
        return ErrorReport(code=self.code, message=self.message, stage=self.stage or stage)
