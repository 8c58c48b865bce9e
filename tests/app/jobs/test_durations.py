"""The seconds that a job's stages take, from finished jobs that are like it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, update

from app.db import Sessions
from app.jobs import durations, posting, store
from app.jobs.models import AttemptRow, EventRow
from modelpress.contract.event import EventKind
from modelpress.contract.job import Source
from modelpress.contract.recipe import Recipe
from tests.support.results import COMPARISON, FILES

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RECIPE: dict[str, Any] = {"model": "local:tiny", "target_ratio": 1.5, "method": "width"}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(RECIPE | changes)


def submit(sessions: Sessions, job_id: str, **changes: Any) -> str:
    source = Source(reference="local:tiny", model_type="llama", parameters=1000)
    with sessions.begin() as session:
        posting.submit(session, posting.NewJob(job_id, recipe(**changes), source, 3))
    return job_id


def finish(sessions: Sessions, job_id: str, seconds: dict[str, float], **changes: Any) -> None:
    """Have a job done whose stages take these seconds."""
    submit(sessions, job_id, **changes)
    at, rows = NOON, []
    for stage, taken in seconds.items():
        rows.append({"job_id": job_id, "attempt": 1, "at": at, "kind": EventKind.STAGE, "data": {"stage": stage}})
        at += timedelta(seconds=taken)
    with sessions.begin() as session:
        store.claim(session, job_id, "w1", 60.0)
        store.finish(session, job_id, 1, 1.5, COMPARISON, FILES)
        session.execute(insert(EventRow), rows)
        session.execute(update(AttemptRow).where(AttemptRow.job_id == job_id).values(device="cpu", ended_at=at))


def expected(sessions: Sessions, device: str = "cpu", **changes: Any) -> dict[str, float]:
    with sessions() as session:
        return durations.of_stages(session, submit(sessions, "job_new", **changes), recipe(**changes), device)


def test_each_stage_is_expected_to_take_the_median_of_what_it_took(sessions: Sessions) -> None:
    for number, seconds in enumerate((1.0, 9.0, 2.0)):
        finish(sessions, f"job_{number}", {"inspect": seconds, "verify": 10 * seconds})
    assert expected(sessions, target_ratio=1.4, seed=7) == {"inspect": 2.0, "verify": 20.0}


def test_a_stage_that_runs_for_each_ratio_counts_every_time(sessions: Sessions) -> None:
    found = durations.taken_by([("plan", NOON), ("write", NOON), ("plan", NOON)], NOON + timedelta(seconds=3))
    assert found == {"plan": 3.0, "write": 0.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "local:other"},
        {"method": "low_rank"},
        {"target_ratio": [1.4, 1.5]},
        {"formats": ["safetensors", "gguf"]},
        {"distillation": {}},
        {"evaluation": {"max_tokens": 2_000_000}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_job_of_another_kind_says_nothing(sessions: Sessions, changes: dict[str, Any]) -> None:
    finish(sessions, "job_old", {"inspect": 1.0})
    assert expected(sessions, **changes) == {}


def test_a_job_on_another_device_says_nothing(sessions: Sessions) -> None:
    finish(sessions, "job_old", {"inspect": 1.0})
    assert expected(sessions, device="gpu") == {}
