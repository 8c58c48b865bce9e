"""What is particular to files in a directory. What every backend promises is in test_storage.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from app.errors import ArtifactNotFound
from app.storage.directory import MANIFEST, DirectoryStorage, describe, write_manifest
from tests.support.artifacts import CONTENTS, write_files_of_package


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "artifacts")


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    with TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def test_moves_the_files_instead_of_copying_them(storage: DirectoryStorage, package: Path) -> None:
    inode = (package / "model.safetensors").stat().st_ino

    storage.publish("job_1", 1, package)

    assert (storage.root / "job_1" / "1" / "model.safetensors").stat().st_ino == inode
    assert not package.exists()


def test_copies_across_file_systems(storage: DirectoryStorage, other_file_system: Path) -> None:
    package = write_files_of_package(other_file_system / "package")

    storage.publish("job_1", 1, package)

    assert (storage.root / "job_1" / "1" / "model.safetensors").read_bytes() == CONTENTS["model.safetensors"]
    assert not package.exists()


def test_goes_on_after_a_crash_between_moving_and_appearing(storage: DirectoryStorage, package: Path) -> None:
    incoming = storage.root / "job_1" / ".incoming-1"
    incoming.parent.mkdir(parents=True)
    package.rename(incoming)
    write_manifest(incoming, (describe(incoming, "config.json"),))

    assert [file.name for file in storage.publish("job_1", 1, package)] == sorted(CONTENTS)


def test_clients_cannot_read_the_manifest(storage: DirectoryStorage, package: Path) -> None:
    storage.publish("job_1", 1, package)

    assert not storage.exists("job_1", 1, MANIFEST)
    with pytest.raises(ArtifactNotFound):
        storage.open("job_1", 1, MANIFEST, 0, 2)
    assert json.loads((storage.root / "job_1" / "1" / MANIFEST).read_text())["files"]


def test_discarding_leaves_nothing_on_the_disk(storage: DirectoryStorage, package: Path) -> None:
    storage.publish("job_1", 1, package)

    storage.discard("job_1", 1)

    assert list(storage.root.iterdir()) == []


def test_what_an_interrupted_call_has_begun_is_listed_and_discarded(storage: DirectoryStorage, package: Path) -> None:
    incoming = storage.root / "job_1" / ".incoming-1"
    incoming.parent.mkdir(parents=True)
    package.rename(incoming)

    assert storage.attempts() == [("job_1", 1)]
    storage.discard("job_1", 1)
    assert storage.attempts() == []


def test_a_url_leads_to_a_directory_whatever_its_name(tmp_path: Path) -> None:
    root = tmp_path / "my artifacts #1"

    assert DirectoryStorage.at(root.as_uri()).root == root


@pytest.mark.parametrize("name", ["plots", "config.json/x"])
def test_only_files_can_be_opened(storage: DirectoryStorage, package: Path, name: str) -> None:
    storage.publish("job_1", 1, package)

    assert not storage.exists("job_1", 1, name)
    with pytest.raises(ArtifactNotFound):
        storage.open("job_1", 1, name, 0, 1)
