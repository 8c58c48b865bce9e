"""What the supervisor and the computing child say to each other, as JSON lines."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from app.contract.codes import FailureCode
from app.contract.job import Comparison, SweepResult
from app.contract.recipe import Recipe


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


FETCH_STAGE = "fetch"
"""The stage before those of the computing child: model and texts are fetched."""

FETCH_SHARE = 0.02
"""The part of the whole job's progress that fetching takes; the computing child reports the rest."""

Text = Annotated[str, AfterValidator(lambda text: text.replace("\0", "\ufffd"))]
"""What may come from a model's files or mouth: Postgres takes any character but NUL."""


class Assignment(Message):
    """One attempt at a job, with everything that the child may know."""

    job_id: str
    attempt: int
    recipe: Recipe
    model_path: Path = Field(description="a directory with safetensors, or a .gguf file")
    revision: str | None = Field(None, description="commit of a hub model")
    texts: dict[str, Path] = Field(description="for each dataset a .txt file, or a .jsonl file with a document a line")
    text_revisions: dict[str, str] = Field(default_factory=dict, description="commits of hub datasets")
    work_dir: Path = Field(description="of the job; each attempt writes below its own number")
    device: str
    threads: int | None
    processes: int | None = Field(None, description="that train together; None: one for each GPU, or one")
    tasks_dir: Path | None = Field(None, description="the operator's own tasks for lm-eval")
    memory_bytes: int | None = Field(None, description="what the child should stay below; None: what the machine has")


class ProgressReport(Message):
    event: Literal["progress"] = "progress"
    stage: str
    fraction: float = Field(ge=0, le=1, description="of the whole job")
    detail: Text | None = None
    seconds_left: float | None = None


class ResumedReport(Message):
    event: Literal["resumed"] = "resumed"
    stage: str
    block: int | None = None


class DoneReport(Message):
    event: Literal["done"] = "done"
    package: Path
    achieved_ratio: float
    metrics: Comparison
    sweep: tuple[SweepResult, ...] = Field((), description="where the recipe lists ratios, for each in its order")
    missed: Text | None = Field(None, description="what the recipe's gate asked for and the result is not")


class ErrorReport(Message):
    event: Literal["error"] = "error"
    code: FailureCode
    message: Text
    stage: str | None = None


Report = Annotated[ProgressReport | ResumedReport | DoneReport | ErrorReport, Field(discriminator="event")]
REPORT: TypeAdapter[Report] = TypeAdapter(Report)


class AttemptFailed(Exception):
    """The attempt cannot go on. Its code says why, and with that whether another attempt can help."""

    def __init__(self, code: FailureCode, message: str, stage: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.stage = stage

    @classmethod
    def reported(cls, report: ErrorReport) -> Self:
        """Return what another process has reported, as an exception of this one."""
        return cls(report.code, report.message, report.stage)

    def report(self, stage: str | None = None) -> ErrorReport:
        """Return what to tell the supervisor; `stage` stands where the exception names none."""
        return ErrorReport(code=self.code, message=self.message, stage=self.stage or stage)
