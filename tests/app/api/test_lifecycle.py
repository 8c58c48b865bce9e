"""Retry, delete, and the workers, as a client sees them."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.db import Sessions
from app.jobs import roster, store
from app.jobs.roster import Introduction
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Failure, Job
from tests.support.api import Finished

Post = Callable[[], Job]
WORKER = Introduction("host:1", "0.1", "gpu", ("gpu", "h200"), "NVIDIA H200", 150_000_000_000)


def fail(sessions: Sessions, job_id: str) -> None:
    with sessions.begin() as session:
        assert store.claim(session, job_id, "worker", 60)
        assert store.fail(session, job_id, 1, Failure.of(FailureCode.DISK_FULL, "full", attempt=1))


def test_a_failed_job_is_retried_as_a_new_one_that_knows_it(client: TestClient, post: Post, sessions: Sessions) -> None:
    job = post()
    fail(sessions, job.id)
    assert "retry" in client.get(f"/jobs/{job.id}").json()["links"]

    response = client.post(f"/jobs/{job.id}/retry")

    assert response.status_code == 202
    retried = Job.model_validate_json(response.text)
    assert (retried.state, retried.retry_of, retried.recipe) == ("queued", job.id, job.recipe)
    assert response.headers["Location"] == f"/jobs/{retried.id}"
    assert client.get(f"/jobs/{job.id}").json()["state"] == "failed"
    with sessions.begin() as session:
        claim = store.claim(session, retried.id, "worker", 60)
    assert claim is not None
    assert (claim.retry_of, claim.attempt) == (job.id, 2)


def test_only_a_job_without_success_is_retried(client: TestClient, post: Post, finished: Finished) -> None:
    for job_id in (post().id, finished.id):
        response = client.post(f"/jobs/{job_id}/retry")
        assert (response.status_code, response.json()["type"]) == (409, "/problems/cannot_retry")


def test_a_deleted_job_is_gone_with_its_files(client: TestClient, finished: Finished, settings: ServerSettings) -> None:
    response = client.delete(f"/jobs/{finished.id}")

    assert (response.status_code, response.content) == (204, b"")
    assert client.get(f"/jobs/{finished.id}").status_code == 404
    assert client.get(f"/jobs/{finished.id}/artifacts/config.json").status_code == 404
    assert open_storage(settings.artifacts_url).attempts() == []
    assert client.delete(f"/jobs/{finished.id}").status_code == 404
    assert [entry["action"] for entry in client.get("/audit").json()["entries"]] == ["job.deleted", "job.submitted"]


def test_a_job_that_has_not_ended_is_not_deleted(client: TestClient, post: Post) -> None:
    job = post()
    response = client.delete(f"/jobs/{job.id}")

    assert (response.status_code, response.json()["type"]) == (409, "/problems/not_ended")
    client.post(f"/jobs/{job.id}/cancel")
    assert client.delete(f"/jobs/{job.id}").status_code == 204


def beat(sessions: Sessions) -> bool:
    with sessions.begin() as session:
        return roster.beat(session, WORKER)


def test_workers_are_listed_with_their_device_and_job(client: TestClient, post: Post, sessions: Sessions) -> None:
    beat(sessions)
    (idle,) = client.get("/workers").json()["workers"]
    job = post()
    with sessions.begin() as session:
        store.claim(session, job.id, WORKER.id, 60)
    (busy,) = client.get("/workers").json()["workers"]

    assert (idle["id"], idle["state"], idle["job"]) == ("host:1", "idle", None)
    assert (idle["device"], idle["labels"]) == ("gpu", ["gpu", "h200"])
    assert (idle["gpu"], idle["gpu_memory_bytes"]) == ("NVIDIA H200", 150_000_000_000)
    assert (busy["state"], busy["job"]) == ("busy", job.id)


def test_a_silent_worker_is_lost(client: TestClient, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    beat(sessions)
    monkeypatch.setattr(roster, "LOST_SECONDS", 0.0)

    assert client.get("/workers").json()["workers"][0]["state"] == "lost"


def test_a_drained_worker_is_told_at_its_next_beat(client: TestClient, sessions: Sessions) -> None:
    assert beat(sessions) is False

    (worker,) = client.post("/workers/host:1/drain").json()["workers"]

    assert worker["state"] == "draining"
    assert beat(sessions) is True
    assert client.post("/workers/host:2/drain").json()["type"] == "/problems/worker_not_found"


def test_the_summary_of_a_job_has_neither_recipe_nor_measurements(
    client: TestClient, post: Post, tiny: dict[str, Any]
) -> None:
    job = post()
    (summary,) = client.get("/jobs").json()["jobs"]

    assert (summary["id"], summary["model"], summary["method"]) == (job.id, "local:tiny", "low_rank")
    assert summary["target_ratio"] == tiny["target_ratio"]
    assert not {"recipe", "metrics", "attempts"} & summary.keys()
