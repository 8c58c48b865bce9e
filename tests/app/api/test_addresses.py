"""Where the API is reached: by GET and HEAD, with and without its version, and behind a proxy that adds a path."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.settings import Settings
from tests.support.api import Finished, api

PREFIX = "/ml/modelpress"


@pytest.fixture
def behind_proxy(settings: Settings, engine: Engine) -> Iterator[TestClient]:
    with api(settings.model_copy(update={"root_path": PREFIX})) as client:
        yield client


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/jobs", "/jobs/job_done", "/methods", "/docs", "/problems"])
def test_head_is_answered_as_get_without_the_body(client: TestClient, finished: Finished, path: str) -> None:
    asked, got = client.head(path), client.get(path)

    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["Content-Type"] == got.headers["Content-Type"]
    assert asked.headers["Content-Length"] == got.headers["Content-Length"]


def test_head_of_what_can_only_be_posted_is_refused(client: TestClient) -> None:
    assert client.head("/jobs/job_1/cancel").status_code == 405


def test_the_front_door_leads_to_the_documentation(client: TestClient) -> None:
    assert client.get("/").url.path == "/docs"


def test_links_keep_the_version_that_was_asked_for(client: TestClient, tiny: dict[str, Any]) -> None:
    response = client.post("/v1/jobs", json=tiny)

    assert response.headers["Location"] == response.json()["links"]["self"] == f"/v1/jobs/{response.json()['id']}"
    assert client.get(response.headers["Location"]).status_code == 200
    assert client.get("/v1/jobs/job_none").json()["type"] == "/v1/problems/job_not_found"


@pytest.mark.parametrize("sent_on", ["", PREFIX], ids=["stripped", "kept"])
@pytest.mark.parametrize("version", ["", "/v1"])
def test_links_keep_the_path_of_the_proxy(
    behind_proxy: TestClient, finished: Finished, sent_on: str, version: str
) -> None:
    public = PREFIX + version
    job = behind_proxy.get(f"{sent_on}{version}/jobs/{finished.id}").json()
    (first, *_) = behind_proxy.get(f"{sent_on}{version}/jobs/{finished.id}/artifacts").json()["artifacts"]
    problem = behind_proxy.get(f"{sent_on}{version}/jobs/job_none").json()

    assert job["links"]["self"] == f"{public}/jobs/{finished.id}"
    assert first["href"].startswith(f"{public}/jobs/{finished.id}/artifacts/")
    assert (problem["type"], problem["instance"]) == (f"{public}/problems/job_not_found", f"{public}/jobs/job_none")


def test_the_documentation_stays_below_the_path_of_the_proxy(behind_proxy: TestClient) -> None:
    assert f'"{PREFIX}/openapi.json"' in behind_proxy.get("/docs").text.replace("'", '"')
    assert behind_proxy.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]
