"""The answers of the service: jobs, their measurements and their files."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelpress.contract.codes import FailureCode
from modelpress.contract.recipe import Recipe

PLAIN_BYTES = 2
"""Bytes of a number that is not rounded, as ratios count them."""


class State(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Return whether this state is final."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Answer(BaseModel):
    """Base of all answers: immutable."""

    model_config = ConfigDict(frozen=True)


class Source(Answer):
    """The model and the texts as they were found when the job was posted."""

    reference: str = Field(description="the model as named in the recipe")
    revision: str | None = Field(None, description="commit of a hub model; null for a local one")
    model_type: str
    architecture: Literal["registered", "inferred"] = Field(
        "registered", description="inferred: its parts were found by structure; nobody has listed and tested them"
    )
    parameters: int = Field(description="stored parameters, each distinct tensor counted once")
    text_revisions: dict[str, str] = Field(default_factory=dict, description="commit of each hub dataset")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what should be known of the model before its result is used."""
        return () if self.architecture == "registered" else (inferred_warning(self.model_type),)


def inferred_warning(model_type: str) -> str:
    """Return the warning of a model whose architecture is inferred."""
    return (
        f"The architecture {model_type!r} is not registered: its parts were found by structure alone, and no method "
        "was measured on models of its type. Look at the measurements before you use the result."
    )


class TaskMetric(Answer):
    """The value of one metric of a task."""

    value: float | None = Field(description="null if it is not finite")
    stderr: float | None = Field(None, description="standard error; null if the metric has none")
    higher_is_better: bool | None = Field(None, description="null if the task does not say")

    def __str__(self) -> str:
        """Return value and standard error, such as '0.4200 ± 0.0494', or '' without a value."""
        shown = (f"{number:.4f}" for number in (self.value, self.stderr) if number is not None)
        return "" if self.value is None else " ± ".join(shown)


class TaskResult(Answer):
    """The result of a model on one lm-eval task, or on a group of tasks as a whole."""

    version: str | None = Field(None, description="version of the task; only results of one version are comparable")
    examples: int = Field(description="number of examples")
    shots: int | None = Field(None, description="few-shot examples in each prompt; null if the tasks of a group differ")
    metrics: dict[str, TaskMetric] = Field(description="by lm-eval's names, such as 'acc' or 'exact_match,strict'")


class Metrics(Answer):
    """The measurements of one model."""

    parameters: int = Field(description="stored parameters, each distinct tensor counted once")
    bytes: int = Field(description="bytes of those tensors")
    perplexity: dict[str, float] = Field(description="per evaluation dataset")
    kl_divergence: dict[str, float] = Field(
        default_factory=dict,
        description="mean KL divergence of its next-token distributions from the original's, in nats per token, per "
        "evaluation dataset; empty for the original itself",
    )
    top1_agreement: dict[str, float] = Field(
        default_factory=dict,
        description="share of positions at which it and the original predict the same most likely token, per "
        "evaluation dataset; empty for the original itself",
    )
    prefill_tokens_per_second: float | None = Field(
        description="speed of reading a prompt; null if the model does not fit into the worker's memory"
    )
    decode_tokens_per_second: float | None = Field(
        description="speed of generating tokens with a key/value cache; null if the model does not fit"
    )
    peak_memory_bytes: int | None = Field(
        None,
        description="peak resident memory of a fresh process that opens it with transformers, reads a prompt and "
        "generates tokens, including Python and its libraries; on a GPU, peak device memory; null if it does not fit",
    )
    sample: str | None = Field(description="greedy continuation of a fixed prompt; null if the model does not fit")
    tasks: dict[str, TaskResult] = Field(
        default_factory=dict,
        description="result of each task; a tag, or a group without metrics of its own, is listed as its tasks",
    )
    tasks_skipped: str | None = Field(None, description="why the recipe's tasks were not run on this model")

    def task_metric(self, task: str, name: str) -> TaskMetric | None:
        """Return the metric `name` of a task, or None if it was not measured."""
        return self.tasks[task].metrics.get(name) if task in self.tasks else None


class EvaluationProtocol(Answer):
    """How an evaluation dataset was measured.

    Perplexities, divergences and agreements are comparable if their protocols have the same id.
    """

    id: str = Field(description="hash of the fields below except `overlap`")
    corpus: str = Field(description="SHA-256 of the text")
    tokenizer: str = Field(description="SHA-256 of the vocabulary")
    tokens: str = Field(description="SHA-256 of the token ids that were measured")
    window: int = Field(description="tokens per window; no window sees another's text")
    stride: int = Field(description="tokens from the beginning of one window to the beginning of the next")
    max_tokens: int = Field(description="most tokens of the dataset that are measured")
    overlap: float = Field(description="share of the tokens in passages that calibration or distillation text also has")


class Comparison(Answer):
    """The measurements of the original, the result and, on request, a baseline."""

    before: Metrics
    after: Metrics
    baseline: Metrics | None = Field(
        None, description="the original with blocks dropped until it is about as small as the result"
    )
    formats: dict[str, Metrics] = Field(
        default_factory=dict,
        description="per further format whose weights are rounded: `parameters` counts the dequantised weights, so "
        "only `bytes` is smaller; its speed is measured with dequantised weights in floating point",
    )
    protocols: dict[str, EvaluationProtocol] = Field(default_factory=dict, description="per evaluation dataset")

    @property
    def ratio(self) -> float:
        """Return the bytes of the weights before / after, at 16 bits a number where none is rounded."""
        plain = PLAIN_BYTES * self.after.parameters
        return PLAIN_BYTES * self.before.parameters / min(self.after.bytes, plain)


class SweepResult(Answer):
    """The result for one of several ratios."""

    target_ratio: float
    achieved_ratio: float
    directory: str = Field(description="directory of its checkpoint among the artifacts")
    method: str = Field(description="the recipe's method, or the one that 'auto' chose")
    metrics: Comparison


class Failure(Answer):
    """Why a job has failed."""

    code: FailureCode | str = Field(
        union_mode="left_to_right",
        description="`/problems/<code>` explains it; for a code that you do not know, rely on `retryable`",
    )
    message: str
    stage: str | None = Field(None, description="the stage in which it happened")
    retryable: bool = Field(description="whether posting the same recipe again can help")
    attempt: int

    @classmethod
    def of(cls, code: FailureCode, message: str, *, attempt: int, stage: str | None = None) -> "Failure":
        """Return the failure of a known code, which determines whether it is retryable."""
        return cls(code=code, message=message, stage=stage, retryable=code.kind.retryable, attempt=attempt)


class Resumed(Answer):
    """Where an attempt continued from the durable results of earlier attempts."""

    stage: str
    block: int | None = Field(None, description="first block that still had to be computed; only for compression")


class AttemptOutcome(StrEnum):
    """How an attempt ended; after some outcomes the job continues with another attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """The worker stopped renewing its lease, or met a temporary fault."""
    RELEASED = "released"
    """The worker shut down and handed the job back, which does not count as a failed attempt."""
    CANCELLED = "cancelled"


class Attempt(Answer):
    """One attempt at a job by one worker."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: AttemptOutcome | None = Field(None, description="null while it is running")
    resumed: Resumed | None = None


class Timestamps(Answer):
    """When the job last entered each state; null for a state that it never had."""

    queued: datetime
    running: datetime | None = None
    cancelling: datetime | None = None
    succeeded: datetime | None = None
    failed: datetime | None = None
    cancelled: datetime | None = None


class Waiting(Answer):
    """How a job waits for its turn."""

    position: int = Field(description="1 for the job of the team that is computed next; teams take turns")
    workers: int = Field(description="workers that take such jobs; with 0, nobody serves its `device`")


class Job(Answer):
    """A job, from the posting of its recipe to its result."""

    id: str
    team: str = Field("default", description="the team whose job it is")
    state: State
    stage: str | None = Field(
        None,
        description="fetch, inspect, calibrate, plan, compress, distill, quantise, write, evaluate, package or verify; "
        "they run in this order, and distill only if the recipe asks for it. Null while no worker has the job",
    )
    progress: float = Field(0.0, ge=0, le=1, description="finished fraction of the whole job")
    detail: str | None = Field(None, description="what the stage is doing, such as 'block 12 of 30'")
    seconds_left: float | None = Field(
        None, description="estimate from earlier jobs like this one, or recipe and model, and the pace of this attempt"
    )
    waiting: Waiting | None = Field(None, description="null unless the job is queued")
    retry_of: str | None = Field(None, description="the job whose work this one goes on with")
    attempt: int = Field(description="number of the latest attempt; 0 while no worker has claimed the job")
    attempts: tuple[Attempt, ...] = ()
    timestamps: Timestamps
    recipe: Recipe
    source: Source
    warnings: tuple[str, ...] = Field((), description="what should be known before the result is used")
    achieved_ratio: float | None = Field(
        None,
        description="bytes of the weights before, at 16 bits a number, / after; for the first of several ratios",
    )
    metrics: Comparison | None = Field(None, description="measurements; for the first ratio, if there are several")
    sweep: tuple[SweepResult, ...] = Field((), description="one result for each ratio, if the recipe lists ratios")
    error: Failure | None = None
    links: dict[str, str]


class JobSummary(Answer):
    """A job in a list; its `links.self` leads to the whole of it."""

    id: str
    team: str = "default"
    state: State
    stage: str | None = None
    progress: float = Field(0.0, ge=0, le=1)
    seconds_left: float | None = None
    timestamps: Timestamps
    model: str
    target_ratio: float | tuple[float, ...]
    method: str
    device: str | None = None
    priority: int = 0
    metadata: dict[str, str] = Field(default_factory=dict)
    achieved_ratio: float | None = None
    error: Failure | None = None
    retry_of: str | None = None
    links: dict[str, str]


class JobPage(Answer):
    """One page of the list of jobs, newest first."""

    jobs: tuple[JobSummary, ...]
    next: str | None = Field(None, description="send as ?after= for the next page; null on the last one")


class Artifact(Answer):
    """A file of a job's result."""

    name: str
    bytes: int
    sha256: str
    media_type: str
    href: str


class ArtifactList(Answer):
    """The files of a job's result."""

    artifacts: tuple[Artifact, ...]


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, str]] | None = Field(None, description="'field' and 'message' of each wrong field")
