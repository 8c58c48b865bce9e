"""The API in front of a real database and a real broker, and a job that has succeeded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.db import Sessions
from app.settings import Settings
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Failure, Job
from tests.support.api import Finished, api, finish


@pytest.fixture
def client(settings: Settings, engine: Engine) -> Iterator[TestClient]:
    with api(settings) as client:
        yield client


@pytest.fixture
def post(client: TestClient, tiny: dict[str, Any]) -> Callable[[], Job]:
    """Posts a job and returns it as answered."""

    def post_tiny() -> Job:
        response = client.post("/jobs", json=tiny)
        assert response.status_code == 202, response.text
        return Job.model_validate_json(response.text)

    return post_tiny


@pytest.fixture
def finished(settings: Settings, sessions: Sessions, tmp_path: Path) -> Finished:
    return finish(settings, sessions, tmp_path)


@pytest.fixture
def below_gate(settings: Settings, sessions: Sessions, tmp_path: Path) -> Finished:
    """One that has failed although it has a result."""
    failure = Failure.of(FailureCode.QUALITY_GATE, "twice the perplexity", attempt=1)
    return finish(settings, sessions, tmp_path, failure)
