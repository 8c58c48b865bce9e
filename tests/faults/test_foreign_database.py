"""No process of the service runs on a data directory whose files belong to another database."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from app.db import Sessions, make_engine, upgrade
from app.jobs.installation import claim_files
from app.serve import environment
from app.settings import ServerSettings
from app.storage.registry import open_storage
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture
def fresh(servers: ServerSettings) -> Iterator[SecretStr]:
    """The URL of a second, empty database, migrated and otherwise as good as any."""
    url = make_url(servers.database_url.get_secret_value())
    engine = make_engine(servers.database_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE fresh"))
        secret = SecretStr(url.set(database="fresh").render_as_string(hide_password=False))
        second = make_engine(secret)
        upgrade(second)
        second.dispose()
        yield secret
        connection.execute(text("DROP DATABASE fresh WITH (FORCE)"))
    engine.dispose()


@pytest.mark.parametrize("command", ["worker", "api", "serve"])
def test_ends_at_once_and_leaves_every_file(
    settings: ServerSettings, sessions: Sessions, fresh: SecretStr, tmp_path: Path, command: str
) -> None:
    storage = open_storage(settings.artifacts_url)
    claim_files(settings, sessions, storage)
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.safetensors").write_text("weights")
    storage.publish("job_1", 1, package)
    wrong = settings.model_copy(update={"database_url": fresh, "port": 0})
    ended = subprocess.run(
        [sys.executable, "-m", "modelpress.cli", command],
        env=environment(wrong),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert ended.returncode == 1
    assert "belongs to the database" in ended.stderr
    assert "MODELPRESS_DATA_DIR" in ended.stderr
    assert storage.exists("job_1", 1, "model.safetensors")
