"""What was recorded during a soak, and what of it breaks a promise."""

import datetime
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from app.jobs.states import TRANSITIONS
from bench.chaos.computing import FAILS, PLAIN, POISON, SLOW
from modelpress.contract.job import State

MOVES = {(before, after) for (before, _), after in TRANSITIONS.items()}
LOST_CODES = ("worker_lost", "compute_killed", "compute_crashed")
"""How a job may fail whose processes were killed as often as it has attempts."""


@dataclass(frozen=True)
class Move:
    """A change of a job's state or attempt, as PostgreSQL wrote it down while it was made."""

    at: datetime.datetime
    job_id: str
    before: str | None
    after: str
    attempt_before: int | None
    attempt: int


@dataclass(frozen=True)
class Written:
    """An event that an attempt has written."""

    at: datetime.datetime
    job_id: str
    attempt: int


@dataclass(frozen=True)
class Ended:
    """A job as it stands in the database when all is over."""

    job_id: str
    kind: str
    state: str
    code: str | None
    attempt: int
    attempts_left: int
    sha256: str | None
    """Digest of its weights, as the database has it; None where it has no result."""


@dataclass
class History:
    """All that was recorded.

    Attributes:
        answers: pairs of key and job of every 202.
        cancelled: jobs for which a client asked to cancel and was answered.
        seen: per client and job, the states and attempts that it saw, in order.
        answered: how often each status was answered.
        too_slow: requests that were not answered in time.
        damaged: downloads that were not what they should be.
        expected: digest that the weights of each key's job must have.
        downloads: results that were downloaded whole.
        max_attempts: attempts of a job that may be lost.
        moves, written, ended: what the database has.
        lethal: faults that killed or froze a process that held a job.
        left: files and processes that nobody needs any more.
    """

    answers: list[tuple[str, str]] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    seen: dict[tuple[int, str], list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    answered: Counter[str] = field(default_factory=Counter)
    too_slow: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    lethal: int = 0
    left: list[str] = field(default_factory=list)
    max_attempts: int = 3
    downloads: int = 0


def violations(history: History) -> list[str]:
    """Return every violated promise in one line each."""
    return [f"{promise}: {what}" for promise, check in CHECKS.items() for what in check(history)]


def accepted(history: History) -> Iterator[str]:
    """Every job that was answered 202 is there and has ended, and each key has one job."""
    ended = {job.job_id: job for job in history.ended}
    jobs: dict[str, set[str]] = defaultdict(set)
    for key, job_id in history.answers:
        jobs[key].add(job_id)
        if job_id not in ended:
            yield f"{job_id} was accepted and is not there"
    for key, found in jobs.items():
        if len(found) > 1:
            yield f"the key {key} made the jobs {sorted(found)}"
    for job in history.ended:
        if not has_ended(job.state):
            yield f"{job.job_id} is still {job.state}"


def once(history: History) -> Iterator[str]:
    """A job makes only the moves of the table, ends once, and each claim raises its attempt by one."""
    for job_id, moves in by_job(history.moves).items():
        for move in moves:
            if move.before is not None and move.before != move.after and not may_move(move):
                yield f"{job_id} went from {move.before} to {move.after}"
            claimed = move.after == State.RUNNING and move.before == State.QUEUED
            if move.attempt != (move.attempt_before or 0) + claimed:
                yield f"{job_id} went from attempt {move.attempt_before} to {move.attempt} as it became {move.after}"
        ends = sum(has_ended(move.after) and move.before != move.after for move in moves)
        if ends > 1:
            yield f"{job_id} ended {ends} times"


def may_move(move: Move) -> bool:
    """Return whether the table knows the move. A job whose worker fell silent may also be ended by the sweeper."""
    return (State(str(move.before)), State(move.after)) in MOVES


def has_ended(state: str | None) -> bool:
    """Return whether a state is final."""
    return state is not None and State(state).has_ended


def fenced(history: History) -> Iterator[str]:
    """No attempt writes anything after the next one was claimed."""
    claimed = {
        (move.job_id, move.attempt): move.at
        for move in history.moves
        if move.after == State.RUNNING and move.before == State.QUEUED
    }
    for event in history.written:
        after = claimed.get((event.job_id, event.attempt + 1))
        if after is not None and event.at > after:
            yield f"attempt {event.attempt} of {event.job_id} wrote at {event.at}; the next was claimed at {after}"


def right_end(history: History) -> Iterator[str]:
    """A job ends as its computation does, unless a client cancelled it or its processes were killed too often."""
    key_of = {job_id: key for key, job_id in history.answers}
    for job in history.ended:
        where = f"{job.job_id} ({job.kind})"
        spent = job.attempts_left == 0 and job.code in LOST_CODES
        if job.state == State.CANCELLED and job.job_id not in history.cancelled:
            yield f"{where} is cancelled and nobody asked for that"
        if job.state == State.FAILED and not spent and (job.kind, job.code) != (FAILS, "no_tokenizer"):
            yield f"{where} failed as {job.code} with {job.attempts_left} attempts left"
        if job.state == State.SUCCEEDED and job.kind in (POISON, FAILS):
            yield f"{where} succeeded"
        expected = history.expected.get(key_of.get(job.job_id, ""))
        if job.state == State.SUCCEEDED and expected is not None and job.sha256 != expected:
            yield f"{where} has weights of the digest {job.sha256} in place of {expected}"


def uncharged(history: History) -> Iterator[str]:
    """Attempts are charged for killed processes alone, and not for outages of servers.

    One attempt of each job that ended while it was claimed is the one that it ended with.
    """
    held = {move.job_id for move in history.moves if has_ended(move.after) and move.before != State.QUEUED}
    charged = sum(
        history.max_attempts - job.attempts_left - (job.job_id in held)
        for job in history.ended
        if job.kind in (PLAIN, SLOW)
    )
    if charged > history.lethal:
        yield f"{charged} attempts were charged, and {history.lethal} faults killed or froze something"


def monotonous(history: History) -> Iterator[str]:
    """No client sees a job leave its final state, or an attempt smaller than one that it saw before."""
    for (client, job_id), seen in history.seen.items():
        for (before, attempt_before), (after, attempt) in pairwise(seen):
            if has_ended(before) and before != after:
                yield f"client {client} saw {job_id} {before} and then {after}"
            if attempt < attempt_before:
                yield f"client {client} saw attempt {attempt} of {job_id} after {attempt_before}"


def answers(history: History) -> Iterator[str]:
    """No request is answered 500 or not at all."""
    for status, count in history.answered.items():
        if status == "500":
            yield f"{count} requests were answered 500"
    yield from history.too_slow


def whole(history: History) -> Iterator[str]:
    """Every download is what the database says."""
    yield from history.damaged


def used(history: History) -> Iterator[str]:
    """Something happened at all: jobs succeeded, and results were downloaded."""
    if not any(job.state == State.SUCCEEDED for job in history.ended):
        yield "no job succeeded"
    if not history.downloads:
        yield "nothing was downloaded"


def clean(history: History) -> Iterator[str]:
    """Nothing is left of jobs that have ended but their results."""
    yield from history.left


CHECKS = {
    "accepted": accepted,
    "once": once,
    "once (fenced)": fenced,
    "accepted (right end)": right_end,
    "accepted (uncharged)": uncharged,
    "once (seen)": monotonous,
    "bounded (answers)": answers,
    "whole": whole,
    "clean": clean,
    "used": used,
}


def by_job(moves: Iterable[Move]) -> Mapping[str, list[Move]]:
    """Return the moves of each job, in their order."""
    found: dict[str, list[Move]] = defaultdict(list)
    for move in moves:
        found[move.job_id].append(move)
    return found
