"""Files of finished jobs, compared with what the database says of them."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from app.db import Sessions
from app.jobs import store, uploads
from app.jobs.models import UploadRow
from app.jobs.verification import Damage, verify
from app.settings import ServerSettings
from app.storage import Storage
from app.storage.registry import open_storage
from modelpress.contract.upload import UploadRequest
from tests.support.api import CONTENTS, finish

WEIGHTS = "model.safetensors"
SIZE = len(CONTENTS[WEIGHTS])
UPLOADED = f"upload_{1:024x}"


@pytest.fixture
def storage(settings: ServerSettings, sessions: Sessions, tmp_path: Path) -> Storage:
    """The storage with the files of one finished job."""
    finish(settings, sessions, tmp_path)
    return open_storage(settings.artifacts_url)


@pytest.fixture
def weights(storage: Storage, settings: ServerSettings) -> Path:
    """The file of the job's weights."""
    return settings.data_dir / "artifacts" / "job_done" / "1" / WEIGHTS


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def test_files_that_are_whole_have_no_damage(storage: Storage, sessions: Sessions) -> None:
    told: list[tuple[int, int]] = []
    found = verify(sessions, storage, lambda done, of: told.append((done, of)))
    size = sum(map(len, CONTENTS.values()))
    assert (found.jobs, found.files, found.bytes, found.damages, found.unknown) == (1, len(CONTENTS), size, (), ())
    assert told[-1] == (size, size)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b"half"), f"has 4 of {SIZE} bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), f"has more than {SIZE} bytes"),
        (flip, "has the SHA-256"),
    ],
)
def test_a_file_that_is_not_what_was_recorded_is_named_with_what_it_is(
    sessions: Sessions, storage: Storage, weights: Path, harm: Callable[[Path], None], what: str
) -> None:
    harm(weights)
    (damage,) = verify(sessions, storage).damages
    assert (damage.job_id, damage.name) == ("job_done", WEIGHTS)
    assert damage.what.startswith(what)


def test_a_file_that_cannot_be_read_is_damage_and_ends_nothing(
    sessions: Sessions, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = storage.open

    def broken(job_id: str, attempt: int, name: str, start: int, stop: int) -> object:
        if name == WEIGHTS:
            raise OSError(5, "Input/output error")
        return whole(job_id, attempt, name, start, stop)

    monkeypatch.setattr(storage, "open", broken)
    assert verify(sessions, storage).damages == (Damage("job_done", WEIGHTS, "cannot be read: Input/output error"),)


def test_a_job_that_is_deleted_meanwhile_is_no_damage(sessions: Sessions, storage: Storage, weights: Path) -> None:
    def delete(done: int, of: int) -> None:
        with sessions.begin() as session:
            store.delete(session, "job_done")
        weights.unlink(missing_ok=True)

    assert verify(sessions, storage, delete).damages == ()


def test_files_of_jobs_that_the_database_does_not_know_are_listed(
    sessions: Sessions, storage: Storage, tmp_path: Path
) -> None:
    package = tmp_path / "other"
    package.mkdir()
    (package / "config.json").write_text("{}")
    storage.publish("job_other", 1, package)
    found = verify(sessions, storage)
    assert (found.damages, found.unknown) == ((), ("job_other",))


@pytest.fixture
def upload(storage: Storage, settings: ServerSettings, sessions: Sessions, tmp_path: Path) -> str:
    """The id of a complete upload."""
    content, package = b"some text", tmp_path / "sent"
    package.mkdir()
    (package / "text.txt").write_bytes(content)
    storage.publish(UPLOADED, uploads.ATTEMPT, package)
    with sessions.begin() as session:
        request = UploadRequest(name="some.txt", format="txt", bytes=len(content))
        uploads.add(session, UPLOADED, "default", request)
        uploads.complete(session, UPLOADED, sha256(content).hexdigest())
    return UPLOADED


def test_an_upload_is_compared_too(sessions: Sessions, storage: Storage, settings: ServerSettings, upload: str) -> None:
    whole = verify(sessions, storage)
    assert (whole.jobs, whole.uploads, whole.files, whole.damages) == (1, 1, len(CONTENTS) + 1, ())
    (settings.data_dir / "artifacts" / upload / "1" / "text.txt").write_bytes(b"some tent")
    (damage,) = verify(sessions, storage).damages
    assert (damage.job_id, damage.name) == (upload, "text.txt")
    assert damage.what.startswith("has the SHA-256")


def test_an_upload_that_is_deleted_meanwhile_is_no_damage(sessions: Sessions, storage: Storage, upload: str) -> None:
    def delete(done: int, of: int) -> None:
        with sessions.begin() as session:
            if session.get(UploadRow, upload) is not None:
                uploads.remove(session, upload)
        storage.discard(upload, uploads.ATTEMPT)

    assert verify(sessions, storage, delete).damages == ()
