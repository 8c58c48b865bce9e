"""A server that hangs, rather than refuses, holds up no client for long."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from app.settings import ServerSettings
from tests.support.proxy import broker_address, broker_behind, database_address, database_behind, proxy
from tests.support.server import serving
from tests.support.waiting import PATIENCE_SECONDS, wait_for

PROMISED_SECONDS = 2.0
LOAD_SECONDS = 8.0
"""What a machine that many other processes load may add."""


def timed(client: httpx2.Client, method: str, path: str, body: Any = None) -> tuple[httpx2.Response, float]:
    """Return the answer to a request, and the seconds that it took."""
    asked = time.monotonic()
    response = client.request(method, path, json=body)
    return response, time.monotonic() - asked


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a hub that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_frozen_broker_holds_up_no_request(settings: ServerSettings, engine: Engine, tiny: dict[str, Any]) -> None:
    with (
        proxy(broker_address(settings)) as between,
        serving(broker_behind(settings, between)) as address,
        httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client,
    ):
        assert client.get("/readyz").json()["status"] == "ready"
        between.fall_silent(new_too=True)
        for _ in range(3):
            posted, seconds = timed(client, "POST", "/jobs", tiny)
            assert posted.status_code == 202
            assert seconds < PROMISED_SECONDS + LOAD_SECONDS
        wait_for(lambda: client.get("/readyz").json()["status"] == "degraded")
        between.speak()
        wait_for(lambda: client.get("/readyz").json()["status"] == "ready")


def test_a_frozen_database_is_told_at_once_and_comes_back(
    settings: ServerSettings, engine: Engine, tiny: dict[str, Any]
) -> None:
    with (
        proxy(database_address(settings)) as between,
        serving(database_behind(settings, between)) as address,
        httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client,
    ):
        job = client.post("/jobs", json=tiny).json()["links"]["self"]
        between.fall_silent(new_too=True)
        for method, path, body in (("GET", job, None), ("POST", "/jobs", tiny), ("GET", "/jobs", None)):
            response, seconds = timed(client, method, path, body)
            assert (response.status_code, response.json()["type"]) == (503, "/problems/database_unavailable")
            assert "Retry-After" in response.headers
            assert seconds < PROMISED_SECONDS + LOAD_SECONDS
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        between.speak()
        wait_for(lambda: client.get(job).status_code == 200)


def test_connections_that_lead_nowhere_are_replaced(settings: ServerSettings, engine: Engine) -> None:
    with (
        proxy(database_address(settings)) as between,
        serving(database_behind(settings, between)) as address,
        httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client,
    ):
        with ThreadPoolExecutor(12) as clients:
            list(clients.map(lambda _: client.get("/jobs"), range(24)))
        between.fall_silent()
        wait_for(lambda: client.get("/jobs").status_code == 200)


def test_readiness_is_answered_from_what_is_known(settings: ServerSettings, engine: Engine) -> None:
    with serving(settings) as address, httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
        assert min(timed(client, "GET", "/readyz")[1] for _ in range(20)) < 0.05


def test_a_silent_hub_is_unavailable_and_holds_up_nobody_else(
    settings: ServerSettings, engine: Engine, tiny: dict[str, Any], silent_hub: str
) -> None:
    asking = settings.model_copy(update={"hub_enabled": True, "hub_endpoint": silent_hub})
    with serving(asking) as address, httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
        job = client.post("/jobs", json=tiny).json()["links"]["self"]
        with ThreadPoolExecutor(60) as clients:
            body = tiny | {"model": "org/name"}
            posting = [clients.submit(timed, client, "POST", "/jobs", body) for _ in range(60)]
            found, seconds = timed(client, "GET", job)
            answers = [each.result() for each in posting]

    assert found.status_code == 200
    assert seconds < PROMISED_SECONDS + LOAD_SECONDS
    assert {(answer.status_code, answer.json()["type"]) for answer, _ in answers} == {
        (503, "/problems/hub_unavailable")
    }
    assert all("Retry-After" in answer.headers for answer, _ in answers)
    assert sorted(seconds for _, seconds in answers)[30] < PROMISED_SECONDS + LOAD_SECONDS
