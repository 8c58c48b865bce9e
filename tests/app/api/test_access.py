"""Keys: who is let in, to what, and that another team's jobs do not exist."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.db import Sessions
from app.keys import service
from app.keys.setup import issue_key
from app.settings import ServerSettings
from modelpress.contract.access import KeyRequest, Scope
from tests.support.api import Finished, api

EVERYTHING = frozenset(Scope)


@dataclass(frozen=True)
class House:
    """A service that asks for keys."""

    client: TestClient
    sessions: Sessions

    def key(self, team: str, *scopes: Scope) -> dict[str, str]:
        """Return the headers of a request with a new key of the team."""
        request = KeyRequest(name="test", scopes=frozenset(scopes) or EVERYTHING)
        return {"Authorization": f"Bearer {issue_key(self.sessions, team, request).token}"}


@pytest.fixture
def house(settings: ServerSettings, engine: Engine, sessions: Sessions) -> Iterator[House]:
    with api(settings, is_open=False) as client:
        yield House(client, sessions)


GUARDED = (
    ("GET", "/jobs"),
    ("POST", "/jobs"),
    ("POST", "/jobs/estimate"),
    ("GET", "/jobs/job_1"),
    ("DELETE", "/jobs/job_1"),
    ("POST", "/jobs/job_1/cancel"),
    ("POST", "/jobs/job_1/retry"),
    ("GET", "/jobs/job_1/events"),
    ("GET", "/jobs/job_1/events/stream"),
    ("GET", "/jobs/job_1/artifacts/config.json"),
    ("GET", "/workers"),
    ("POST", "/workers/host:1/drain"),
    ("GET", "/models"),
    ("GET", "/datasets"),
    ("GET", "/methods"),
    ("GET", "/keys"),
    ("GET", "/audit"),
    ("GET", "/team"),
)


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer mp_none", f"Bearer mp_{'0' * 16}_{'x' * 43}", "Basic dTpw", "Bearer é"]
)
def test_nobody_is_let_in_without_a_valid_key(house: House, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode()}
    body = {"model": "local:tiny", "target_ratio": 2}
    for method, path in GUARDED:
        response = house.client.request(method, path, headers=headers, json=body)
        assert (response.status_code, response.json()["type"]) == (401, "/problems/unauthenticated"), path
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_health_and_documentation_need_no_key(house: House) -> None:
    for path in ("/livez", "/readyz", "/docs", "/openapi.json", "/problems", "/problems/refused"):
        assert house.client.get(path).status_code == 200


def test_a_key_is_good_for_its_scopes_alone(house: House, tiny: dict[str, Any]) -> None:
    reading, submitting = house.key("search", Scope.READ), house.key("search", Scope.SUBMIT)

    job = house.client.post("/jobs", json=tiny, headers=submitting).json()["id"]
    assert house.client.get(f"/jobs/{job}", headers=reading).status_code == 200
    for refused in (
        house.client.get(f"/jobs/{job}", headers=submitting),
        house.client.post("/jobs", json=tiny, headers=reading),
        house.client.post(f"/jobs/{job}/cancel", headers=reading),
        house.client.get("/keys", headers=reading),
    ):
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/missing_scope")


def test_another_teams_job_does_not_exist(house: House, tiny: dict[str, Any]) -> None:
    ours, theirs = house.key("search"), house.key("ads")
    job = house.client.post("/jobs", json=tiny, headers=ours).json()["id"]

    for method, path in (
        ("GET", f"/jobs/{job}"),
        ("POST", f"/jobs/{job}/cancel"),
        ("GET", f"/jobs/{job}/artifacts"),
        ("GET", f"/jobs/{job}/artifacts/config.json"),
        ("HEAD", f"/jobs/{job}/artifacts/config.json"),
        ("GET", f"/jobs/{job}/checkpoint"),
        ("GET", f"/jobs/{job}/events"),
        ("GET", f"/jobs/{job}/events/stream"),
        ("POST", f"/jobs/{job}/retry"),
        ("DELETE", f"/jobs/{job}"),
    ):
        unknown = house.client.request(method, path.replace(job, "job_none"), headers=theirs)
        answer = house.client.request(method, path, headers=theirs)
        assert answer.status_code == unknown.status_code == 404
        assert answer.text == unknown.text.replace("job_none", job)
    assert house.client.get("/jobs", headers=theirs).json()["jobs"] == []
    assert [each["id"] for each in house.client.get("/jobs", headers=ours).json()["jobs"]] == [job]


def test_a_job_from_before_there_were_keys_is_the_default_teams(house: House, finished: Finished) -> None:
    path = f"/jobs/{finished.id}/artifacts/config.json"

    assert house.client.get(path, headers=house.key("default")).content == finished.contents["config.json"]
    assert house.client.get(path, headers=house.key("search")).status_code == 404


def test_two_teams_may_use_the_same_idempotency_key(house: House, tiny: dict[str, Any]) -> None:
    jobs = {
        house.client.post("/jobs", json=tiny, headers=house.key(team) | {"Idempotency-Key": "nightly"}).json()["id"]
        for team in ("search", "ads")
    }

    assert len(jobs) == 2


def test_a_key_is_shown_once_and_stored_as_a_hash(house: House, engine: Engine) -> None:
    admin = house.key("search", Scope.ADMIN)
    issued = house.client.post("/keys", json={"name": "ci", "scopes": ["read"], "days": 30}, headers=admin)

    assert issued.status_code == 201
    token = issued.json()["token"]
    assert house.client.get("/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    listed = house.client.get("/keys", headers=admin)
    assert [key["name"] for key in listed.json()["keys"]] == ["ci", "test"]
    secret = token.rpartition(issued.json()["id"])[2]
    assert secret not in listed.text
    with engine.connect() as connection:
        assert secret not in str(connection.execute(text("SELECT * FROM api_keys, audit")).all())


def test_a_revoked_key_is_useless_at_once_and_stays_in_the_list(house: House) -> None:
    admin, other = house.key("search"), house.key("search", Scope.READ)
    (key_id,) = [
        key["id"] for key in house.client.get("/keys", headers=admin).json()["keys"] if len(key["scopes"]) == 1
    ]
    assert house.client.get("/jobs", headers=other).status_code == 200

    revoked = house.client.delete(f"/keys/{key_id}", headers=admin)

    assert revoked.json()["revoked_at"] is not None
    assert house.client.get("/jobs", headers=other).status_code == 401
    assert house.client.delete(f"/keys/{key_id}", headers=admin).json() == revoked.json()


def test_a_key_that_another_process_has_revoked_is_let_in_for_a_second_at_most(
    house: House, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = house.key("search")
    assert house.client.get("/jobs", headers=key).status_code == 200
    with sessions.begin() as session:
        session.execute(text("UPDATE api_keys SET revoked_at = clock_timestamp()"))
    monkeypatch.setattr(service, "monotonic", lambda: monotonic() + service.RECENT_SECONDS)
    assert house.client.get("/jobs", headers=key).status_code == 401


def test_another_teams_key_cannot_be_revoked(house: House) -> None:
    ours, theirs = house.key("search"), house.key("ads")
    (key_id,) = [key["id"] for key in house.client.get("/keys", headers=ours).json()["keys"]]

    assert house.client.delete(f"/keys/{key_id}", headers=theirs).json()["type"] == "/problems/key_not_found"
    assert house.client.get("/jobs", headers=ours).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:8000"},
        {"Host": "10.0.0.7"},
        {"Host": "[bad"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_service_without_keys_cannot_be_used_by_the_pages_of_other_sites(
    client: TestClient, tiny: dict[str, Any], headers: dict[str, str]
) -> None:
    refused = client.post("/jobs", json=tiny, headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (403, "/problems/foreign_page")


@pytest.mark.parametrize(
    "headers", [{"Host": "127.0.0.1:8000"}, {"Host": "[::1]:8000"}, {"Origin": "http://localhost"}]
)
def test_a_service_without_keys_is_used_from_its_own_machine(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/jobs", headers=headers).status_code == 200


def test_a_key_or_worker_whose_name_holds_a_nul_is_refused(client: TestClient) -> None:
    assert client.delete("/keys/a%00b").status_code == 422
    assert client.post("/workers/a%00b/drain").status_code == 422


def test_an_expired_key_is_useless(house: House, engine: Engine) -> None:
    key = house.key("search")
    with engine.begin() as connection:
        connection.execute(text("UPDATE api_keys SET expires_at = clock_timestamp() - interval '1 second'"))

    assert house.client.get("/jobs", headers=key).status_code == 401


def test_the_last_use_of_a_key_is_known(house: House) -> None:
    admin = house.key("search")
    for _ in range(2):
        (key,) = house.client.get("/keys", headers=admin).json()["keys"]

    assert key["used_at"] > key["created_at"]


def test_every_change_is_recorded_with_key_and_request(house: House, tiny: dict[str, Any]) -> None:
    admin = house.key("search")
    job = house.client.post("/jobs", json=tiny, headers=admin | {"X-Request-Id": "trace-1"}).json()["id"]
    house.client.post(f"/jobs/{job}/cancel", headers=admin)
    key = house.client.post("/keys", json={"name": "ci"}, headers=admin).json()["id"]
    house.client.delete(f"/keys/{key}", headers=admin)

    first = house.client.get("/audit?limit=3", headers=admin).json()
    rest = house.client.get(f"/audit?before={first['next']}", headers=admin).json()
    entries = first["entries"] + rest["entries"]
    assert [(entry["action"], entry["subject"]) for entry in entries[:-1]] == [
        ("key.revoked", key),
        ("key.created", key),
        ("job.cancelled", job),
        ("job.submitted", job),
    ]
    assert entries[3]["request_id"] == "trace-1"
    assert entries[3]["key_id"] == entries[-1]["subject"]
    assert rest["next"] is None
    assert house.client.get("/audit", headers=house.key("ads")).json()["entries"][0]["action"] == "key.created"


def test_what_is_refused_is_not_recorded(house: House, tiny: dict[str, Any]) -> None:
    admin = house.key("search")
    house.client.post("/jobs", json=tiny | {"target_ratio": 900}, headers=admin)

    assert [entry["action"] for entry in house.client.get("/audit", headers=admin).json()["entries"]] == ["key.created"]


def test_the_document_of_the_api_names_the_key(house: House) -> None:
    document = house.client.get("/openapi.json").json()

    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/jobs"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/livez"]["get"]


def test_a_scope_is_named_once(house: House) -> None:
    refused = house.client.post("/keys", json={"name": "x", "scopes": ["read", "read"]}, headers=house.key("search"))
    assert refused.json()["errors"] == [{"field": "scopes", "message": "name each scope once"}]
