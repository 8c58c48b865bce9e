"""The API in front of a real database and a real broker, and a job that has succeeded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.contract.job import Comparison, Failure, Job, Metrics, Source
from app.contract.recipe import Recipe
from app.db import Sessions
from app.jobs import store
from app.main import create_app
from app.settings import Settings
from app.storage.local import ArtifactStore

CONTENTS = {
    "README.md": b"# tiny\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 9000 + b"end",
    "plots/loss.svg": b"<svg/>",
}


@dataclass(frozen=True)
class Finished:
    """A job with a result and the contents of its files."""

    id: str
    contents: dict[str, bytes]


@contextmanager
def api(settings: Settings) -> Iterator[TestClient]:
    """A client of the API that runs with these settings; a failure of the service is an answer, not an exception."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


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
    failure = Failure(code="quality_gate", message="twice the perplexity", retryable=False, attempt=1)
    return finish(settings, sessions, tmp_path, failure)


def finish(settings: Settings, sessions: Sessions, tmp_path: Path, failure: Failure | None = None) -> Finished:
    """A job with published files, taken through its states by the statements that the worker uses."""
    recipe = Recipe(model="local:tiny", target_ratio=1.2)
    source = Source(reference="local:tiny", model_type="llama", parameters=1000)
    package = tmp_path / "package"
    for name, content in CONTENTS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(content)
    files = ArtifactStore(settings.artifacts_dir).publish("job_done", 1, package)
    with sessions.begin() as session:
        store.submit(session, "job_done", recipe, source, max_attempts=3)
        assert store.claim(session, "job_done", "worker", lease_seconds=60) is not None
        found = Comparison(before=metrics(), after=metrics())
        assert store.finish(session, "job_done", 1, 1.2, found, files, failure)
    return Finished("job_done", CONTENTS)


def metrics() -> Metrics:
    return Metrics(
        parameters=1000,
        bytes=2000,
        perplexity={"builtin:python-docs-test": 20.0},
        prefill_tokens_per_second=100.0,
        decode_tokens_per_second=10.0,
        sample="Once",
    )
