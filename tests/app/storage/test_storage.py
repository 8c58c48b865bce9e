"""What every storage backend promises: publishing is all or nothing, can be repeated, and nothing leads outside."""

import hashlib
from pathlib import Path

import pytest

from app.errors import ArtifactNotFound, UnknownStorage
from app.storage import InvalidNameError, Storage, check_name
from app.storage.registry import BACKENDS, open_storage
from tests.support.artifacts import CONTENTS, write_files_of_package
from tests.support.memory_storage import MemoryStorage


@pytest.fixture(params=["file", "s3", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A backend as the settings would choose it; the line that adds the one in memory is the next."""
    monkeypatch.setitem(BACKENDS, "memory", MemoryStorage.at)
    if request.param == "s3":
        request.getfixturevalue("object_store")
        return open_storage("s3://bucket/prefix")
    return open_storage(f"{request.param}://{tmp_path}/artifacts")


def test_these_tests_cover_every_backend() -> None:
    assert set(BACKENDS) == {"file", "s3", "gs", "az"}


def test_a_url_of_no_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownStorage, match="file://"):
        open_storage("gopher://host/artifacts")


def read(storage: Storage, attempt: int, name: str) -> bytes:
    return b"".join(storage.open("job_1", attempt, name, 0, len(CONTENTS[name])))


def test_publishes_every_file_with_its_size_and_digest(storage: Storage, package: Path) -> None:
    files = storage.publish("job_1", 2, package)

    assert [file.name for file in files] == sorted(CONTENTS)
    for file in files:
        content = CONTENTS[file.name]
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert read(storage, 2, file.name) == content


def test_tells_the_media_type_by_the_name(storage: Storage, package: Path) -> None:
    types = {file.name: file.media_type for file in storage.publish("job_1", 1, package)}

    assert types == {
        "config.json": "application/json",
        "model.safetensors": "application/octet-stream",
        "plots/loss.svg": "image/svg+xml",
    }


def test_publishing_again_answers_as_the_first_time(storage: Storage, package: Path) -> None:
    first = storage.publish("job_1", 1, package)

    assert storage.publish("job_1", 1, package) == first


def test_what_is_published_does_not_change(storage: Storage, package: Path, tmp_path: Path) -> None:
    first = storage.publish("job_1", 1, package)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes(b'{"changed": true}')

    assert storage.publish("job_1", 1, other) == first
    assert read(storage, 1, "config.json") == CONTENTS["config.json"]


def test_attempts_do_not_see_each_other(storage: Storage, package: Path) -> None:
    storage.publish("job_1", 1, package)

    assert not storage.exists("job_1", 2, "config.json")
    with pytest.raises(ArtifactNotFound):
        storage.open("job_1", 2, "config.json", 0, 2)


def test_an_interrupted_attempt_is_not_visible(storage: Storage, package: Path) -> None:
    (package / "link").symlink_to("/etc/hostname")

    with pytest.raises(InvalidNameError, match="link"):
        storage.publish("job_1", 1, package)
    assert not storage.exists("job_1", 1, "config.json")


def test_a_missing_directory_is_an_error(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.publish("job_1", 1, tmp_path / "nothing")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "é",
    ],
)
def test_refuses_names_that_are_not_plain(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_name(name)


def test_reads_exactly_the_range(storage: Storage, package: Path) -> None:
    storage.publish("job_1", 1, package)

    chunks = list(storage.open("job_1", 1, "model.safetensors", 1000, 1_200_000))

    assert b"".join(chunks) == CONTENTS["model.safetensors"][1000:1_200_000]


def test_reading_survives_discarding(storage: Storage, package: Path) -> None:
    storage.publish("job_1", 1, package)
    chunks = storage.open("job_1", 1, "config.json", 0, 2)

    storage.discard("job_1", 1)

    assert b"".join(chunks) == b"{}"


def test_discarding_leaves_nothing_and_can_be_repeated(storage: Storage, package: Path) -> None:
    storage.publish("job_1", 1, package)

    storage.discard("job_1", 1)
    storage.discard("job_1", 1)

    assert storage.attempts() == []
    assert not storage.exists("job_1", 1, "config.json")


def test_discarding_one_attempt_keeps_the_others(storage: Storage, package: Path, tmp_path: Path) -> None:
    storage.publish("job_1", 1, package)
    storage.publish("job_1", 2, write_files_of_package(tmp_path / "second"))

    storage.discard("job_1", 1)

    assert storage.exists("job_1", 2, "config.json")


def test_a_job_id_cannot_lead_outside(storage: Storage, package: Path) -> None:
    with pytest.raises(InvalidNameError):
        storage.publish("../job_1", 1, package)


def test_files_that_were_set_aside_are_out_of_sight(storage: Storage, package: Path) -> None:
    storage.publish("job_1", 2, package)

    for _ in range(2):
        storage.set_aside("job_1", 2)

    assert storage.attempts() == []
    assert not storage.exists("job_1", 2, "config.json")


def test_belongs_to_the_database_that_came_first(storage: Storage) -> None:
    assert [storage.owner("first"), storage.owner("second")] == ["first", "first"]
    assert storage.attempts() == []
