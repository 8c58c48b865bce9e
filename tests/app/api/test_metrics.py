"""The figures of the service, as Prometheus reads them."""

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import Engine

from app.db import Sessions
from app.jobs import roster, store
from app.jobs.roster import Introduction
from app.keys.setup import issue_key
from app.settings import ServerSettings
from modelpress.contract.access import KeyRequest, Scope
from modelpress.contract.job import Job
from tests.support.api import Finished, api

Figures = Callable[[], dict[tuple[str, ...], float]]


def figures(client: TestClient, **headers: str) -> dict[tuple[str, ...], float]:
    """Return every sample by its name and the values of its labels."""
    response = client.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    families = text_string_to_metric_families(response.text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_counts_jobs_by_state_and_the_bytes_that_are_stored(
    client: TestClient, finished: Finished, post: Callable[[], Job]
) -> None:
    post()
    found = figures(client)
    assert found["modelpress_jobs", "succeeded"] == found["modelpress_jobs", "queued"] == 1
    assert found["modelpress_jobs", "failed"] == 0
    assert found["modelpress_stored_bytes",] == sum(map(len, finished.contents.values()))


def test_methods_that_clients_make_up_do_not_become_labels(client: TestClient) -> None:
    for number in range(3):
        client.request(f"BREW{number}", "/jobs")
    counted = {name[1] for name in figures(client) if name[0] == "modelpress_request_seconds_count"}
    assert "other" in counted
    assert not any(name.startswith("BREW") for name in counted)


def test_counts_failures_by_their_code(client: TestClient, below_gate: Finished) -> None:
    assert figures(client)["modelpress_failed_jobs", "quality_gate"] == 1


def test_says_how_long_the_oldest_job_has_waited_and_who_serves_the_queue(
    client: TestClient, sessions: Sessions, post: Callable[[], Job]
) -> None:
    post()
    alone = figures(client)
    with sessions.begin() as session:
        roster.beat(session, Introduction("worker", "0", "cpu", ("cpu",)))
    served = figures(client)
    assert alone["modelpress_queue_jobs", "any"] == 1
    assert alone["modelpress_queue_oldest_seconds", "any"] > 0
    assert (alone["modelpress_queue_workers", "any"], served["modelpress_queue_workers", "any"]) == (0, 1)
    assert (alone["modelpress_workers", "idle"], served["modelpress_workers", "idle"]) == (0, 1)


def test_a_job_that_is_being_computed_waits_no_more(
    client: TestClient, sessions: Sessions, post: Callable[[], Job]
) -> None:
    job = post()
    with sessions.begin() as session:
        store.claim(session, job.id, "worker", 60.0)
    found = figures(client)
    assert (found["modelpress_queue_jobs", "any"], found["modelpress_queue_oldest_seconds", "any"]) == (0, 0)
    assert found["modelpress_jobs", "running"] == 1


def test_times_requests_by_route_and_never_by_what_a_client_has_made_up(client: TestClient) -> None:
    client.get("/jobs/job_1")
    client.head("/jobs/job_2")
    client.get("/made/up")
    found = figures(client)
    assert found["modelpress_request_seconds_count", "GET", "/jobs/{job_id}", "404"] == 1
    assert found["modelpress_request_seconds_count", "HEAD", "/jobs/{job_id}", "404"] == 1
    assert found["modelpress_request_seconds_count", "GET", "none", "404"] == 1


def test_without_the_database_says_so_and_answers_all_the_same(settings: ServerSettings) -> None:
    nobody = settings.model_copy(update={"database_url": SecretStr("postgresql://127.0.0.1:1/nothing")})
    with api(nobody) as client:
        found = figures(client)
    assert (found["modelpress_server_up", "database"], found["modelpress_server_up", "broker"]) == (0, 1)
    assert ("modelpress_jobs", "queued") not in found


@pytest.fixture
def closed(settings: ServerSettings, engine: Engine) -> Iterator[TestClient]:
    """An API that asks for keys."""
    with api(settings, is_open=False) as client:
        yield client


def test_asks_for_a_key_with_the_scope_metrics(closed: TestClient, sessions: Sessions) -> None:
    keys = {
        scope: issue_key(sessions, "default", KeyRequest(name="a key", scopes=frozenset({scope}))).token
        for scope in (Scope.METRICS, Scope.READ)
    }
    assert closed.get("/metrics").status_code == 401
    assert closed.get("/metrics", headers={"Authorization": f"Bearer {keys[Scope.READ]}"}).status_code == 403
    assert figures(closed, Authorization=f"Bearer {keys[Scope.METRICS]}")["modelpress_server_up", "database"] == 1
