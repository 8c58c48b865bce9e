"""Webhooks over HTTP: what is refused, what is shown, and whose they are."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.db import Sessions
from app.keys.setup import issue_key
from app.settings import ServerSettings
from modelpress.contract.access import KeyRequest, Scope
from tests.support.api import api

PUBLIC = {"url": "https://ci.example/hook"}


def test_the_secret_is_shown_once(client: TestClient) -> None:
    made = client.post("/webhooks", json=PUBLIC)
    (listed,) = client.get("/webhooks").json()["webhooks"]
    assert made.status_code == 201
    assert made.json()["secret"].startswith("whsec_")
    assert "secret" not in listed
    assert listed["events"] == ["job.cancelled", "job.failed", "job.succeeded"]


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:169.254.169.254]/",
        "https://127.0.0.1:8000/",
        "http://ci.example/hook",
        "https://user:password@ci.example/",
        "ftp://ci.example/",
        "https://ci.example/#part",
        "https:///hook",
        "https://ci.example:99999/",
        "https://ci.example/ hook",
    ],
)
def test_an_address_that_must_not_be_reached_is_refused_with_its_field(client: TestClient, url: str) -> None:
    response = client.post("/webhooks", json={"url": url})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["url"]
    assert client.get("/webhooks").json()["webhooks"] == []


def test_a_test_event_stands_in_the_log_until_a_worker_sends_it(client: TestClient) -> None:
    webhook = client.post("/webhooks", json=PUBLIC).json()["id"]
    tried = client.post(f"/webhooks/{webhook}/test")
    (entry,) = client.get(f"/webhooks/{webhook}/deliveries").json()["deliveries"]
    assert tried.status_code == 202
    assert (entry["event"], entry["state"], entry["attempts"]) == ("webhook.test", "pending", 0)
    assert entry["message_id"] == tried.json()["message_id"]


def test_the_log_comes_in_pages_newest_first(client: TestClient) -> None:
    webhook = client.post("/webhooks", json=PUBLIC).json()["id"]
    sent = [client.post(f"/webhooks/{webhook}/test").json()["id"] for _ in range(3)]
    first = client.get(f"/webhooks/{webhook}/deliveries?limit=2").json()
    second = client.get(f"/webhooks/{webhook}/deliveries?before={first['next']}").json()
    assert [entry["id"] for page in (first, second) for entry in page["deliveries"]] == sent[::-1]
    assert second["next"] is None


def test_a_deleted_webhook_is_gone(client: TestClient) -> None:
    webhook = client.post("/webhooks", json=PUBLIC).json()["id"]
    client.post(f"/webhooks/{webhook}/test")
    assert client.delete(f"/webhooks/{webhook}").status_code == 204
    assert client.get(f"/webhooks/{webhook}/deliveries").status_code == 404
    assert client.delete(f"/webhooks/{webhook}").json()["type"] == "/problems/webhook_not_found"


def test_a_delivery_that_there_is_not_cannot_be_sent_again(client: TestClient) -> None:
    webhook = client.post("/webhooks", json=PUBLIC).json()["id"]
    response = client.post(f"/webhooks/{webhook}/deliveries/1/retry")
    assert (response.status_code, response.json()["type"]) == (404, "/problems/delivery_not_found")


def test_a_team_has_so_many_webhooks_and_no_more(client: TestClient) -> None:
    made = [client.post("/webhooks", json=PUBLIC).status_code for _ in range(21)]
    assert made == [201] * 20 + [429]


@pytest.fixture
def closed(settings: ServerSettings, engine: Engine) -> Iterator[TestClient]:
    """An API that asks for keys."""
    with api(settings, is_open=False) as client:
        yield client


def test_a_webhook_belongs_to_the_team_and_is_for_its_administrators(closed: TestClient, sessions: Sessions) -> None:
    def key(team: str, scope: Scope) -> dict[str, str]:
        issued = issue_key(sessions, team, KeyRequest(name="a key", scopes=frozenset({scope})))
        return {"Authorization": f"Bearer {issued.token}"}

    ours, theirs, reading = key("search", Scope.ADMIN), key("ads", Scope.ADMIN), key("search", Scope.READ)
    webhook = closed.post("/webhooks", json=PUBLIC, headers=ours).json()["id"]
    assert closed.get(f"/webhooks/{webhook}/deliveries", headers=theirs).status_code == 404
    assert closed.post(f"/webhooks/{webhook}/test", headers=theirs).status_code == 404
    assert closed.delete(f"/webhooks/{webhook}", headers=theirs).status_code == 404
    assert closed.get("/webhooks", headers=theirs).json()["webhooks"] == []
    assert closed.get("/webhooks", headers=reading).status_code == 403
    assert closed.get("/webhooks").status_code == 401
