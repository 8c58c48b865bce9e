"""The states of a job and the only ways from one to another.

A pure table: no clock, no SQL. `store.py` builds from it the WHERE clause of every statement that moves a job, so a
move that is not in the table cannot be made.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from modelpress.contract.job import State


class Event(StrEnum):
    CLAIM = "claim"  # a worker takes the job for a new attempt
    RETRY = "retry"  # the attempt was lost or met a passing fault, and others are left
    RELEASE = "release"  # the worker hands the job back: it is shutting down, or lacks disk, memory or an answer
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"  # the client asks
    STOP = "stop"  # the computation has ended because of it


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.QUEUED, Event.CLAIM): State.RUNNING,
        (State.QUEUED, Event.CANCEL): State.CANCELLED,
        (State.RUNNING, Event.RETRY): State.QUEUED,
        (State.RUNNING, Event.RELEASE): State.QUEUED,
        (State.RUNNING, Event.SUCCEED): State.SUCCEEDED,
        (State.RUNNING, Event.FAIL): State.FAILED,
        (State.RUNNING, Event.CANCEL): State.CANCELLING,
        (State.CANCELLING, Event.CANCEL): State.CANCELLING,
        (State.CANCELLING, Event.STOP): State.CANCELLED,
    }
)

LEASED: Final = (State.RUNNING, State.CANCELLING)
ENDED: Final = tuple(state for state in State if state.has_ended)


def origins(event: Event) -> tuple[State, ...]:
    """Return the states in which `event` can happen."""
    return tuple(state for state, known in TRANSITIONS if known is event)


def destination(event: Event) -> State:
    """Return the state to which `event` leads; it must lead to one state only."""
    (state,) = {after for (_, known), after in TRANSITIONS.items() if known is event}
    return state
