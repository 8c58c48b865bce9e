"""The checker of the soak: a history that keeps every promise passes, and each broken promise is named."""

import datetime
from dataclasses import replace
from typing import Any

import pytest

from bench.chaos.computing import FAILS, PLAIN, POISON
from bench.chaos.history import Ended, History, Move, Written, violations
from bench.chaos.record import RESULTS, Soaks

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DONE = Ended("job_1", PLAIN, "succeeded", None, attempt=2, attempts_left=1, sha256="digest")


def at(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def moves(*ways: tuple[str | None, str, int | None, int], job: str = "job_1") -> list[Move]:
    return [Move(at(number), job, *way) for number, way in enumerate(ways)]


SOUND = moves(
    (None, "queued", None, 0),
    ("queued", "running", 0, 1),
    ("running", "queued", 1, 1),
    ("queued", "running", 1, 2),
    ("running", "succeeded", 2, 2),
)


def history(**changes: Any) -> History:
    """Return the history of one job whose worker was killed once, with some of it changed."""
    sound = History(
        answers=[("key", "job_1")],
        answered={"202": 1, "503": 3},
        seen={(0, "job_1"): [("queued", 0), ("running", 1), ("succeeded", 2)]},
        expected={"key": "digest"},
        moves=SOUND,
        written=[Written(at(1.5), "job_1", 1), Written(at(4), "job_1", 2)],
        ended=[DONE],
        lethal=1,
        downloads=1,
    )
    return replace(sound, **changes)


def test_a_history_that_keeps_every_promise_passes() -> None:
    assert violations(history()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ended": []}, "accepted and is not there"),
        ({"answers": [("key", "job_1"), ("key", "job_2")]}, "made the jobs"),
        ({"ended": [replace(DONE, state="running", sha256=None)]}, "still running"),
        ({"moves": [*SOUND, *moves(("succeeded", "running", 2, 2))]}, "from succeeded to running"),
        ({"moves": [*SOUND, *moves(("running", "failed", 2, 2))]}, "ended 2 times"),
        ({"moves": moves(("queued", "running", 1, 1))}, "from attempt 1 to 1"),
        ({"moves": moves(("running", "queued", 1, 2))}, "from attempt 1 to 2"),
        ({"written": [Written(at(3.5), "job_1", 1)]}, "attempt 1 of job_1 wrote"),
        ({"ended": [replace(DONE, state="cancelled", sha256=None)]}, "nobody asked"),
        ({"ended": [replace(DONE, state="failed", code="internal_error")]}, "failed as internal_error"),
        ({"ended": [replace(DONE, state="failed", code="worker_lost")]}, "with 1 attempts left"),
        ({"ended": [replace(DONE, kind=POISON)]}, "succeeded"),
        ({"ended": [replace(DONE, kind=FAILS, state="failed", code="compute_killed")]}, "failed as compute_killed"),
        ({"ended": [replace(DONE, sha256="other")]}, "digest other"),
        ({"lethal": 0}, "1 attempts were charged"),
        ({"seen": {(0, "job_1"): [("succeeded", 2), ("running", 2)]}}, "saw job_1 succeeded and then running"),
        ({"seen": {(0, "job_1"): [("running", 2), ("running", 1)]}}, "saw attempt 1"),
        ({"answered": {"500": 2}}, "2 requests were answered 500"),
        ({"too_slow": ["GET / was not answered"]}, "GET / was not answered"),
        ({"damaged": ["half a file"]}, "half a file"),
        ({"left": ["process 7"]}, "process 7"),
        ({"downloads": 0}, "nothing was downloaded"),
    ],
)
def test_a_broken_promise_is_named(changes: dict[str, Any], told: str) -> None:
    found = violations(history(**changes))
    assert any(told in violation for violation in found), found


def test_what_is_kept_of_soaks_can_be_read() -> None:
    assert all(run.requests and run.jobs for run in Soaks.read(RESULTS).runs)
