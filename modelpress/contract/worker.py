"""The workers, as the API shows them."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from modelpress.contract.job import Answer


class WorkerState(StrEnum):
    """The state of a worker: whether it waits, computes or takes no more jobs."""

    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    """It takes no further job, and ends once it has computed the one that it has."""
    LOST = "lost"
    """It has not been heard of for a while."""


class Worker(Answer):
    """A process that computes jobs, one at a time."""

    id: str
    state: WorkerState
    device: str = Field(description="cpu or gpu")
    labels: tuple[str, ...] = Field(description="what a recipe may name as its `device` to be computed here")
    gpu: str | None = Field(None, description="its GPU, or the slice of one; null for a CPU, and until it is known")
    gpu_memory_bytes: int | None = Field(
        None, description="all memory of that GPU or slice, also what others on it take; null where `gpu` is null"
    )
    job: str | None = Field(description="the job that it computes, if it is one of the caller's team")
    started_at: datetime
    beat_at: datetime = Field(description="when it was last heard of")
    version: str


class WorkerList(Answer):
    """All workers, the oldest first."""

    workers: tuple[Worker, ...]
