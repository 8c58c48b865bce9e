"""Post, look, list, cancel, as a client sees it."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Engine, text

from app.api.pace import pause_seconds
from app.db import Sessions
from app.jobs import store
from app.jobs.store import Progress
from app.settings import Settings
from modelpress.contract.job import Job
from tests.support.api import Finished, api

Post = Callable[[], Job]


def test_a_posted_job_is_accepted_and_can_be_found(client: TestClient, tiny: dict[str, Any]) -> None:
    response = client.post("/jobs", json=tiny)

    assert response.status_code == 202
    assert response.headers["Location"] == f"/jobs/{response.json()['id']}"
    assert int(response.headers["Retry-After"]) >= 1
    assert client.get(response.headers["Location"]).json() == response.json()


def test_a_posted_job_tells_its_recipe_as_resolved(client: TestClient, tiny: dict[str, Any], post: Post) -> None:
    job = post()

    assert (job.state, job.attempt, job.recipe.seed) == ("queued", 0, 0)
    assert (job.source.model_type, job.source.reference) == ("llama", "local:tiny")


def test_a_refused_job_is_not_kept(client: TestClient, tiny: dict[str, Any]) -> None:
    assert client.post("/jobs", json=tiny | {"target_ratio": 900}).status_code == 422

    assert client.get("/jobs").json()["jobs"] == []


def test_a_job_that_failed_with_a_code_of_another_version_is_shown_with_that_code(
    client: TestClient, below_gate: Finished, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("""UPDATE jobs SET error = jsonb_set(error, '{code}', '"from_another_version"')"""))

    assert client.get(f"/jobs/{below_gate.id}").json()["error"]["code"] == "from_another_version"


def test_an_unchanged_job_is_not_sent_again(client: TestClient, post: Post) -> None:
    address = f"/jobs/{post().id}"
    etag = client.get(address).headers["ETag"]

    response = client.get(address, headers={"If-None-Match": f'"other", W/{etag}'})

    assert (response.status_code, response.content) == (304, b"")


def test_a_changed_job_is_sent_again(client: TestClient, post: Post, sessions: Sessions) -> None:
    job = post()
    etag = client.get(f"/jobs/{job.id}").headers["ETag"]
    with sessions.begin() as session:
        assert store.claim(session, job.id, "worker", 60)

    response = client.get(f"/jobs/{job.id}", headers={"If-None-Match": etag})

    assert (response.status_code, response.json()["state"]) == (200, "running")


def test_only_a_live_job_asks_to_come_again(client: TestClient, post: Post, finished: Finished) -> None:
    assert "Retry-After" in client.get(f"/jobs/{post().id}").headers
    assert "Retry-After" not in client.get(f"/jobs/{finished.id}").headers


def test_the_pause_between_two_looks_grows_with_what_is_left(
    client: TestClient, post: Post, sessions: Sessions
) -> None:
    job = post()
    with sessions.begin() as session:
        store.claim(session, job.id, "worker", 60)
        store.beat(session, job.id, 1, 60, Progress("compress", 0.1, seconds_left=200.0))
    assert client.get(f"/jobs/{job.id}").headers["Retry-After"] == "10"

    assert pause_seconds(job.model_copy(update={"seconds_left": 90_000.0})) == 30


def test_jobs_are_listed_newest_first(client: TestClient, post: Post) -> None:
    ids = [post().id for _ in range(3)]

    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == ids[::-1]


def test_pages_show_every_job_once(client: TestClient, post: Post) -> None:
    ids = [post().id for _ in range(5)]
    seen, after = [], None
    while True:
        page = client.get("/jobs", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        after = page["next"]
        if after is None:
            break

    assert seen == ids[::-1]


def test_the_list_can_be_cut_to_one_state(client: TestClient, post: Post, finished: Finished) -> None:
    queued = post().id

    assert [job["id"] for job in client.get("/jobs?state=queued").json()["jobs"]] == [queued]
    assert [job["id"] for job in client.get("/jobs?state=succeeded").json()["jobs"]] == [finished.id]


@pytest.mark.parametrize(
    "query",
    [
        "owner=search",
        "order=asc",
        "limit=0",
        "limit=101",
        "limit=x",
        "state=lost",
        "after=%00",
        "after=e30=",
        "after=é",
    ],
)
def test_a_wrong_query_is_refused_with_its_field(client: TestClient, query: str) -> None:
    response = client.get(f"/jobs?{query}")

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


def test_cancelling_a_waiting_job_ends_it_and_can_be_repeated(client: TestClient, post: Post) -> None:
    address = f"/jobs/{post().id}/cancel"

    first, second = client.post(address), client.post(address)

    assert (first.status_code, first.json()["state"]) == (200, "cancelled")
    assert second.json() == first.json()


def test_cancelling_a_running_job_asks_for_patience(client: TestClient, post: Post, sessions: Sessions) -> None:
    job = post()
    with sessions.begin() as session:
        store.claim(session, job.id, "worker", 60)

    response = client.post(f"/jobs/{job.id}/cancel")

    assert response.json()["state"] == "cancelling"
    assert "Retry-After" in response.headers


def test_cancelling_a_succeeded_job_is_a_conflict(client: TestClient, finished: Finished) -> None:
    response = client.post(f"/jobs/{finished.id}/cancel")

    assert (response.status_code, response.json()["type"]) == (409, "/problems/job_ended")


@pytest.mark.parametrize("job_id", ["job_unknown", "job_%00", "job_%F0%9F%92%A5", "..%2f..", "x" * 5000])
def test_an_unknown_job_is_not_found(client: TestClient, job_id: str) -> None:
    for response in (client.get(f"/jobs/{job_id}"), client.post(f"/jobs/{job_id}/cancel")):
        assert response.status_code == 404
        assert response.headers["Content-Type"] == "application/problem+json"


def test_a_job_is_accepted_while_the_broker_is_down(settings: Settings, engine: Engine, tiny: dict[str, Any]) -> None:
    with api(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})) as client:
        response = client.post("/jobs", json=tiny)

        assert response.status_code == 202
        assert client.get(response.headers["Location"]).json()["state"] == "queued"
