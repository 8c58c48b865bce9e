"""A request that is repeated with its Idempotency-Key makes no second job."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.db import Sessions
from app.jobs import repeats
from app.jobs.service import JobService
from modelpress.contract.recipe import Recipe
from tests.support.doorbell import SilentDoorbell

KEY = {"Idempotency-Key": "2026-11-30-nightly"}


def count_jobs(client: TestClient) -> int:
    return len(client.get("/jobs").json()["jobs"])


def test_twenty_requests_at_once_make_one_job(
    service: JobService, doorbell: SilentDoorbell, tiny: dict[str, Any]
) -> None:
    recipe = Recipe.model_validate(tiny)
    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(lambda _: service.submit(recipe, "key"), range(20)))

    assert all(job == jobs[0] for job in jobs)
    assert doorbell.rung == [jobs[0].id]
    assert len(service.page(None, 10).jobs) == 1


def test_the_repetition_is_answered_as_the_first_request(client: TestClient, tiny: dict[str, Any]) -> None:
    first, second = (client.post("/jobs", json=tiny, headers=KEY) for _ in range(2))

    assert (second.status_code, second.json()) == (202, first.json())
    assert second.headers["Location"] == first.headers["Location"]
    assert count_jobs(client) == 1


def test_the_repetition_is_recognised_whatever_the_order_of_its_fields(
    client: TestClient, tiny: dict[str, Any]
) -> None:
    backwards = dict(reversed(tiny.items()))

    assert (
        client.post("/jobs", json=tiny, headers=KEY).json() == client.post("/jobs", json=backwards, headers=KEY).json()
    )


def test_another_recipe_with_the_same_key_is_refused(client: TestClient, tiny: dict[str, Any]) -> None:
    client.post("/jobs", json=tiny, headers=KEY)
    response = client.post("/jobs", json=tiny | {"seed": 7}, headers=KEY)

    assert (response.status_code, response.json()["type"]) == (422, "/problems/idempotency_key_reused")
    assert count_jobs(client) == 1


def test_without_a_key_each_request_makes_a_job(client: TestClient, tiny: dict[str, Any]) -> None:
    assert client.post("/jobs", json=tiny).json()["id"] != client.post("/jobs", json=tiny).json()["id"]


def test_a_refused_request_leaves_its_key_free(client: TestClient, tiny: dict[str, Any]) -> None:
    assert client.post("/jobs", json=tiny | {"target_ratio": 900}, headers=KEY).status_code == 422
    assert client.post("/jobs", json=tiny, headers=KEY).status_code == 202


def test_a_key_is_free_again_after_a_day(
    client: TestClient, tiny: dict[str, Any], engine: Engine, sessions: Sessions
) -> None:
    first = client.post("/jobs", json=tiny, headers=KEY).json()["id"]
    with engine.begin() as connection:
        connection.execute(text("UPDATE idempotency_keys SET created_at = created_at - interval '25 hours'"))
    second = client.post("/jobs", json=tiny | {"seed": 7}, headers=KEY).json()["id"]

    assert second != first
    assert client.post("/jobs", json=tiny | {"seed": 7}, headers=KEY).json()["id"] == second


def test_expired_keys_are_forgotten(
    client: TestClient, tiny: dict[str, Any], engine: Engine, sessions: Sessions
) -> None:
    for number in range(2):
        client.post("/jobs", json=tiny, headers={"Idempotency-Key": f"key-{number}"})
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE idempotency_keys SET created_at = created_at - interval '25 hours' WHERE key = 'key-0'")
        )
    with sessions.begin() as session:
        repeats.forget(session)

    with engine.connect() as connection:
        assert connection.scalars(text("SELECT key FROM idempotency_keys")).all() == ["key-1"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_a_key_that_is_none_is_refused(client: TestClient, tiny: dict[str, Any], key: str) -> None:
    response = client.post("/jobs", json=tiny, headers={"Idempotency-Key": key})

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
