"""A team's requests in a minute: counted, told, and bounded."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.settings import ServerSettings
from tests.support.api import api

LIMIT = 3


@pytest.fixture
def client(settings: ServerSettings, engine: Engine) -> Iterator[TestClient]:
    with api(settings.model_copy(update={"requests_per_minute": LIMIT})) as client:
        yield client


def test_an_answer_tells_what_is_left(client: TestClient) -> None:
    left = [client.get("/jobs").headers for _ in range(2)]

    assert [headers["RateLimit"].partition(";t=")[0] for headers in left] == ['"team";r=2', '"team";r=1']
    assert left[0]["RateLimit-Policy"] == '"team";q=3;w=60'


def test_a_request_beyond_the_limit_is_refused_and_told_when_to_come_back(client: TestClient) -> None:
    for _ in range(LIMIT):
        assert client.get("/jobs").status_code == 200
    refused = client.get("/jobs")

    assert refused.status_code == 429
    assert refused.json()["type"].endswith("/problems/too_many_requests")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit"].startswith('"team";r=0;t=')


def test_what_needs_no_key_is_not_counted(client: TestClient) -> None:
    for _ in range(2 * LIMIT):
        assert client.get("/livez").status_code == 200
    assert client.get("/jobs").status_code == 200


def test_without_a_setting_for_it_there_is_no_limit(settings: ServerSettings, engine: Engine) -> None:
    with api(settings.model_copy(update={"requests_per_minute": None})) as client:
        assert "RateLimit" not in client.get("/jobs").headers
