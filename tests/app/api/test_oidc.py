"""Bearer tokens of an OpenID provider in place of keys."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.settings import ServerSettings
from tests.support import ports
from tests.support.api import api
from tests.support.provider import Provider, provider

STRANGERS_KEY = ec.generate_private_key(ec.SECP256R1())
SHARED_SECRET = "a secret that provider and service would share"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Provider]:
    with provider() as made:
        yield made


@pytest.fixture
def client(settings: ServerSettings, engine: Engine, issuer: Provider) -> Iterator[TestClient]:
    with api(settings.model_copy(update={"oidc_issuer": issuer.issuer}), is_open=False) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_acts_for_the_team_that_it_names(
    client: TestClient, issuer: Provider, tiny: dict[str, Any], engine: Engine
) -> None:
    posted = client.post("/jobs", json=tiny, headers=bearer(issuer.token()))
    job = posted.json()["id"]

    assert posted.status_code == 202
    assert client.get(f"/jobs/{job}", headers=bearer(issuer.token(sub="grace"))).status_code == 200
    assert client.get(f"/jobs/{job}", headers=bearer(issuer.token(team="ads"))).status_code == 404
    assert client.get("/team", headers=bearer(issuer.token())).json()["name"] == "search"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT team, key_id FROM audit")).all() == [("search", "oidc:ada")]


def test_a_token_may_do_what_its_scopes_say(client: TestClient, issuer: Provider, tiny: dict[str, Any]) -> None:
    for scope in ("modelpress:read", ["modelpress:read"]):
        reader = bearer(issuer.token(scope=scope))
        assert client.get("/jobs", headers=reader).status_code == 200
        assert client.post("/jobs", json=tiny, headers=reader).status_code == 403
    for scope in (None, "read submit", 7):
        assert client.get("/jobs", headers=bearer(issuer.token(scope=scope))).status_code == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another-service"},
        {"iss": "https://somebody.else"},
        {"exp": datetime.now(UTC) - timedelta(hours=1)},
        {"exp": None},
        {"nbf": datetime.now(UTC) + timedelta(hours=1)},
        {"sub": None},
        {"sub": "a\0b"},
        {"sub": "x" * 300},
        {"team": None},
        {"team": "no/team"},
        {"team": ["search"]},
        {"key": STRANGERS_KEY},
        {"kid": "unknown"},
        {"key": SHARED_SECRET, "algorithm": "HS256"},
        {"key": "", "algorithm": "none"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_token_that_is_not_right_in_everything_is_refused(
    client: TestClient, issuer: Provider, changes: dict[str, Any]
) -> None:
    token = issuer.token(**changes)
    refused = client.get("/jobs", headers=bearer(token))

    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert token not in refused.text


def test_unknown_keys_make_the_provider_be_asked_once(client: TestClient, issuer: Provider) -> None:
    before = issuer.asked
    for number in range(5):
        client.get("/jobs", headers=bearer(issuer.token(kid=f"made up {number}")))
    assert issuer.asked - before <= 1


def test_a_token_that_nests_too_deep_is_refused(client: TestClient) -> None:
    header = base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=")
    assert client.get("/jobs", headers=bearer(f"{header}.e30.AA")).status_code == 401


def test_a_provider_whose_keys_are_no_json_is_unavailable(
    settings: ServerSettings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider() as broken, api(settings.model_copy(update={"oidc_issuer": broken.issuer}), is_open=False) as client:
        token = broken.token()
        broken.text = "<html>down for maintenance</html>"
        assert client.get("/jobs", headers=bearer(token)).status_code == 503


def test_a_provider_that_is_away_is_told_apart_from_a_wrong_token(
    settings: ServerSettings, engine: Engine, issuer: Provider
) -> None:
    away = f"http://127.0.0.1:{ports.free_port()}"
    with api(settings.model_copy(update={"oidc_issuer": away}), is_open=False) as client:
        answer = client.get("/jobs", headers=bearer(issuer.token(iss=away)))
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("/problems/identity_provider_unavailable")


def test_a_token_is_no_key_where_there_is_no_provider(
    settings: ServerSettings, engine: Engine, issuer: Provider
) -> None:
    with api(settings, is_open=False) as client:
        assert client.get("/jobs", headers=bearer(issuer.token())).status_code == 401
