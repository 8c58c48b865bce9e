"""What the service answers: a job, its measurements, its files."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from app.contract.codes import FailureCode
from app.contract.recipe import Recipe


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether a job in this state stays in it for ever."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Source(Answer):
    """The model and the texts as they were found when the job was posted."""

    reference: str = Field(description="as posted")
    revision: str | None = Field(None, description="commit of a hub model; null for a local one")
    model_type: str
    parameters: int = Field(description="stored parameters, each distinct tensor counted once")
    text_revisions: dict[str, str] = Field(default_factory=dict, description="commit of each hub dataset")


class TaskMetric(Answer):
    """What a model came to by one measure."""

    value: float | None = Field(description="null where it is no finite number")
    stderr: float | None = Field(None, description="standard error; null where it has none")
    higher_is_better: bool | None = Field(None, description="null where the task does not say")

    def __str__(self) -> str:
        """'0.4200 ± 0.0494'; nothing without a value."""
        shown = (f"{number:.4f}" for number in (self.value, self.stderr) if number is not None)
        return "" if self.value is None else " ± ".join(shown)


class TaskResult(Answer):
    """What a model came to on a task of lm-eval, or on a group of them as a whole."""

    version: str | None = Field(None, description="the task's own; results compare where it is the same")
    examples: int = Field(description="that were asked")
    shots: int | None = Field(None, description="solved examples before each that is asked; null where they differ")
    metrics: dict[str, TaskMetric] = Field(description="by the library's names, such as 'acc' or 'exact_match,strict'")


class Metrics(Answer):
    """One model, measured."""

    parameters: int = Field(description="stored parameters, each distinct tensor counted once")
    bytes: int = Field(description="bytes of those tensors")
    perplexity: dict[str, float] = Field(description="per evaluation dataset")
    kl_divergence: dict[str, float] = Field(
        default_factory=dict,
        description="of what it predicts from what the original predicts, mean in nats per token, per evaluation "
        "dataset; empty for the original itself",
    )
    top1_agreement: dict[str, float] = Field(
        default_factory=dict,
        description="share of tokens for which it and the original hold the same one most likely; likewise",
    )
    prefill_tokens_per_second: float | None = Field(
        description="reading a prompt; null where the model does not fit into the worker's memory"
    )
    decode_tokens_per_second: float | None = Field(description="writing, with a cache; null likewise")
    peak_memory_bytes: int | None = Field(
        None,
        description="greatest resident memory of a fresh process that opens it with transformers, reads a prompt and "
        "writes, Python and its libraries included; on a GPU, of the device's; null likewise",
    )
    sample: str | None = Field(description="a greedy continuation of a fixed prompt; null likewise")
    tasks: dict[str, TaskResult] = Field(
        default_factory=dict, description="per task; a tag, and a group without figures of its own, stands as its tasks"
    )
    tasks_skipped: str | None = Field(None, description="why this model was not asked the recipe's tasks")

    def task_metric(self, task: str, name: str) -> TaskMetric | None:
        """What the model came to on a task by one of its measures; None where there is no such figure."""
        return self.tasks[task].metrics.get(name) if task in self.tasks else None


class Protocol(Answer):
    """What was measured on. Perplexities, divergences and agreements compare where the id is the same."""

    id: str = Field(description="of all that follows, except `overlap`")
    corpus: str = Field(description="SHA-256 of the text")
    tokenizer: str = Field(description="SHA-256 of the vocabulary")
    tokens: str = Field(description="SHA-256 of the token ids that were measured")
    window: int = Field(description="tokens per window; each window is predicted on its own")
    stride: int = Field(description="tokens from the beginning of a window to that of the next")
    max_tokens: int
    overlap: float = Field(description="share of the tokens in passages that the result was also made from")


class Comparison(Answer):
    before: Metrics
    after: Metrics
    baseline: Metrics | None = Field(
        None, description="the original without as many of its blocks as make it about as small as the result"
    )
    formats: dict[str, Metrics] = Field(
        default_factory=dict,
        description="per format of the recipe that rounds, such as `int4`: `parameters` counts the numbers that its "
        "codes stand for, so only `bytes` is less; its speed is that of computing with them in floating point",
    )
    protocols: dict[str, Protocol] = Field(default_factory=dict, description="per evaluation dataset")

    @property
    def ratio(self) -> float:
        """Stored parameters before / after."""
        return self.before.parameters / self.after.parameters


class SweepResult(Answer):
    """What one of several ratios came to."""

    target_ratio: float
    achieved_ratio: float
    directory: str = Field(description="of its checkpoint among the artifacts")
    method: str = Field(description="the recipe's, or the one that 'auto' chose")
    metrics: Comparison


class Failure(Answer):
    """Why a job has failed."""

    code: FailureCode | str = Field(
        union_mode="left_to_right",
        description="`/problems/<code>` explains it; treat a code that you do not know by `retryable`",
    )
    message: str
    stage: str | None = Field(None, description="the stage in which it happened")
    retryable: bool = Field(description="whether posting the same recipe again can help")
    attempt: int

    @classmethod
    def of(cls, code: FailureCode, message: str, *, attempt: int, stage: str | None = None) -> "Failure":
        """Return the failure of a known code, retryable as its table says."""
        return cls(code=code, message=message, stage=stage, retryable=code.kind.retryable, attempt=attempt)


class Resumed(Answer):
    """Where an attempt went on from the durable results of the ones before it."""

    stage: str
    block: int | None = Field(None, description="first block that still had to be computed, inside `compress`")


class AttemptOutcome(StrEnum):
    """How an attempt ended; the job itself may go on with another one."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """The worker fell silent or met a passing fault."""
    RELEASED = "released"
    """The worker shut down and handed the job back, which does not count against it."""
    CANCELLED = "cancelled"


class Attempt(Answer):
    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: AttemptOutcome | None = Field(None, description="null while it is under way")
    resumed: Resumed | None = None


class Timestamps(Answer):
    """When the job last entered each state; null where it never did."""

    queued: datetime
    running: datetime | None = None
    cancelling: datetime | None = None
    succeeded: datetime | None = None
    failed: datetime | None = None
    cancelled: datetime | None = None


class Job(Answer):
    id: str
    state: State
    stage: str | None = Field(
        None,
        description="fetch, inspect, calibrate, plan, compress, distill, write, evaluate, package or verify, run in "
        "this order, as far as the recipe asks for them; null while no worker has the job",
    )
    progress: float = Field(0.0, ge=0, le=1, description="of the whole job")
    detail: str | None = Field(None, description="what the stage is doing, such as 'block 12 of 30'")
    seconds_left: float | None = Field(None, description="an estimate, from the pace so far")
    attempt: int = Field(description="0 while no worker has claimed the job")
    attempts: tuple[Attempt, ...] = ()
    timestamps: Timestamps
    recipe: Recipe
    source: Source
    achieved_ratio: float | None = Field(None, description="of several ratios, for the first")
    metrics: Comparison | None = Field(None, description="of several ratios, for the first")
    sweep: tuple[SweepResult, ...] = Field((), description="where the recipe lists ratios, for each in its order")
    error: Failure | None = None
    links: dict[str, str]


class JobPage(Answer):
    jobs: tuple[Job, ...]
    next: str | None = Field(None, description="send as ?after= for the next page; null on the last one")


class Artifact(Answer):
    name: str
    bytes: int
    sha256: str
    media_type: str
    href: str


class ArtifactList(Answer):
    artifacts: tuple[Artifact, ...]


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, str]] | None = Field(None, description="one entry a field: 'field' and 'message'")
