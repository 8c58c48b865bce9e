"""The answer about a job is kept while the job is as it was, and not a moment longer."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api import answers
from app.db import Sessions
from app.jobs import store
from app.jobs.store import Progress
from modelpress.contract.job import Job, Resumed
from tests.support.results import COMPARISON, FILES


def shown(client: TestClient, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return found


def test_whatever_changes_is_seen_at_the_next_look(
    client: TestClient, sessions: Sessions, post: Callable[[], Job]
) -> None:
    first, second = post(), post()
    assert [shown(client, second.id)["waiting"]["position"] for _ in range(2)] == [2, 2]
    client.post(f"/jobs/{first.id}/cancel")
    assert shown(client, second.id)["waiting"]["position"] == 1

    with sessions.begin() as session:
        store.claim(session, second.id, "worker", 60.0)
    running = shown(client, second.id)
    assert (running["state"], running["waiting"], running["attempts"][0]["resumed"]) == ("running", None, None)

    with sessions.begin() as session:
        store.note_resumed(session, second.id, 1, Resumed(stage="compress", block=3))
    assert shown(client, second.id)["attempts"][0]["resumed"]["block"] == 3

    with sessions.begin() as session:
        store.beat(session, second.id, 1, 60.0, Progress("compress", 0.5))
    assert shown(client, second.id)["progress"] == 0.5

    with sessions.begin() as session:
        store.finish(session, second.id, 1, 1.2, COMPARISON, FILES)
    assert shown(client, second.id)["state"] == "succeeded"


def test_a_job_that_is_as_it_was_has_the_same_tag(client: TestClient, post: Callable[[], Job]) -> None:
    job = post()
    tags = {client.get(f"/jobs/{job.id}").headers["etag"] for _ in range(2)}
    assert len(tags) == 1
    assert client.get(f"/jobs/{job.id}", headers={"If-None-Match": tags.pop()}).status_code == 304


def test_each_address_has_links_of_its_own(client: TestClient, post: Callable[[], Job]) -> None:
    job = post()
    assert shown(client, job.id)["links"]["self"] == f"/jobs/{job.id}"
    assert client.get(f"/v1/jobs/{job.id}").json()["links"]["self"] == f"/v1/jobs/{job.id}"


def test_only_so_many_answers_are_kept(
    client: TestClient, post: Callable[[], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MOST_ANSWERS", 1)
    jobs = [post(), post()]
    for _ in range(2):
        assert [shown(client, job.id)["id"] for job in jobs] == [job.id for job in jobs]
