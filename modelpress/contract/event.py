"""What happened to a job, in order."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from modelpress.contract.job import Answer, State


class EventKind(StrEnum):
    """The kind of an event in a job's history."""

    STATE = "state"
    """The job has entered a state: `{state}`, and `{code, message}` where it has failed."""
    STAGE = "stage"
    """An attempt has entered a stage: `{stage}`."""
    METRIC = "metric"
    """A figure was measured: `{step, name, value}`."""
    LOG = "log"
    """The computing process has written a line: `{line}`."""


class JobEvent(Answer):
    """Something that happened to a job."""

    id: int = Field(description="grows within a job")
    at: datetime
    attempt: int
    kind: EventKind
    data: dict[str, Any] = Field(description="what it tells, depending on `kind`")

    @property
    def is_last(self) -> bool:
        """Return whether the job has ended by this, so that nothing follows."""
        return self.kind is EventKind.STATE and State(self.data["state"]).has_ended


class EventPage(Answer):
    """One page of a job's events, oldest first."""

    events: tuple[JobEvent, ...]
    next: int | None = Field(None, description="send as ?after= for what follows; null if there is nothing yet")
