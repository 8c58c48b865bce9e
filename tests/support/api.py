"""The API in one process with the test, and jobs whose result it serves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi.testclient import TestClient

from app.db import Sessions
from app.jobs import posting, store
from app.jobs.posting import NewJob
from app.main import create_app
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.contract.job import Failure, Source
from modelpress.contract.recipe import Recipe
from tests.support.results import COMPARISON

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
def api(settings: ServerSettings, *, is_open: bool = True) -> Iterator[TestClient]:
    """A client of the API that runs with these settings; a failure of the service is an answer, not an exception."""
    app = create_app(settings, is_open=is_open)
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        yield client


def finish(settings: ServerSettings, sessions: Sessions, tmp_path: Path, failure: Failure | None = None) -> Finished:
    """A job with published files, taken through its states by the statements that the worker uses."""
    recipe = Recipe(model="local:tiny", target_ratio=1.2)
    source = Source(reference="local:tiny", model_type="llama", parameters=1000)
    package = tmp_path / "package"
    for name, content in CONTENTS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(content)
    files = open_storage(settings.artifacts_url).publish("job_done", 1, package)
    with sessions.begin() as session:
        posting.submit(session, NewJob("job_done", recipe, source, max_attempts=3))
        assert store.claim(session, "job_done", "worker", lease_seconds=60) is not None
        assert store.finish(session, "job_done", 1, 1.2, COMPARISON, files, failure)
    return Finished("job_done", CONTENTS)
