"""The files of a database are left alone by every other database."""

from pathlib import Path

import pytest
from sqlalchemy import text

from app.db import Sessions
from app.errors import ForeignDataDirectory
from app.jobs.installation import claim_files
from app.settings import Settings
from app.storage import Storage
from app.storage.registry import open_storage


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings.artifacts_url)


@pytest.fixture
def other(sessions: Sessions) -> Sessions:
    """Another database: every session sees an identity of its own, and rolls back."""

    class Other:
        def __call__(self) -> object:
            session = sessions()
            session.execute(text("UPDATE installation SET id = 'another'"))
            return session

    return Other()


def test_the_same_database_finds_its_files_again(settings: Settings, sessions: Sessions, storage: Storage) -> None:
    assert claim_files(settings, sessions, storage) == claim_files(settings, sessions, storage)


def test_another_database_is_refused_with_the_ways_out(
    settings: Settings, sessions: Sessions, other: Sessions, storage: Storage
) -> None:
    claim_files(settings, sessions, storage)
    with pytest.raises(ForeignDataDirectory, match="belongs to the database") as refused:
        claim_files(settings, other, storage)
    assert all(word in refused.value.message for word in ("MODELPRESS_DATA_DIR", "MODELPRESS_DATABASE_URL", "delete"))


def test_a_storage_that_two_data_directories_share_belongs_to_one_database(
    settings: Settings, sessions: Sessions, other: Sessions, storage: Storage, tmp_path: Path
) -> None:
    claim_files(settings, sessions, storage)
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    with pytest.raises(ForeignDataDirectory, match="The storage"):
        claim_files(elsewhere, other, storage)
