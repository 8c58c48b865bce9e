"""What a job would take and make, without posting it."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.db import Sessions
from app.jobs import store
from app.jobs.estimates import Finished, seconds_for
from tests.support.results import COMPARISON, FILES


def test_an_estimate_tells_range_and_sizes_and_posts_nothing(client: TestClient, tiny: dict[str, Any]) -> None:
    estimate = client.post("/jobs/estimate", json=tiny).json()

    assert estimate["accepted"] is True
    assert estimate["errors"] == []
    assert estimate["range"]["lowest"] < tiny["target_ratio"] < estimate["range"]["highest"]
    (size,) = estimate["sizes"]
    assert estimate["bytes_before"] / size["bytes"] == pytest.approx(tiny["target_ratio"], rel=0.01)
    assert estimate["memory_bytes"] > 0
    assert estimate["times"] == []
    assert client.get("/jobs").json()["jobs"] == []


def test_an_estimate_says_why_a_recipe_would_be_refused(client: TestClient, tiny: dict[str, Any]) -> None:
    estimate = client.post("/jobs/estimate", json=tiny | {"target_ratio": 900}).json()

    assert estimate["accepted"] is False
    assert [error["field"] for error in estimate["errors"]] == ["target_ratio"]
    assert estimate["range"]["highest"] < 900


def test_a_model_that_cannot_be_read_is_refused_as_when_posted(client: TestClient, tiny: dict[str, Any]) -> None:
    response = client.post("/jobs/estimate", json=tiny | {"model": "local:none"})

    assert (response.status_code, response.json()["type"]) == (422, "/problems/unknown_model")


def test_the_time_follows_from_what_this_installation_has_finished(
    client: TestClient, tiny: dict[str, Any], sessions: Sessions, engine: Engine
) -> None:
    job_id = client.post("/jobs", json=tiny).json()["id"]
    with sessions.begin() as session:
        assert store.claim(session, job_id, "worker", 60, "gpu")
        assert store.finish(session, job_id, 1, 1.3, COMPARISON, FILES)
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET started_at = ended_at - interval '40 seconds'"))

    assert client.post("/jobs/estimate", json=tiny).json()["times"] == [
        {"device": "gpu", "seconds": 40.0, "attempts": 1}
    ]
    assert client.post("/jobs/estimate", json=tiny | {"method": "width"}).json()["times"] == []


@pytest.mark.parametrize(
    ("work", "seconds"), [(10.0, 30.0), (20.0, 50.0), (100.0, 210.0)], ids=["less", "as much", "more"]
)
def test_time_has_a_start_and_a_part_for_each_unit_of_work(work: float, seconds: float) -> None:
    finished = [Finished(10.0, 30.0), Finished(20.0, 50.0), Finished(30.0, 70.0)]

    assert seconds_for(work, finished) == pytest.approx(seconds)


def test_attempts_of_one_size_are_scaled_by_the_work() -> None:
    assert seconds_for(20.0, [Finished(10.0, 30.0)]) == pytest.approx(60.0)
    assert seconds_for(5.0, [Finished(10.0, 30.0)]) == pytest.approx(30.0)
