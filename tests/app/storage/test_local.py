"""Publishing is all or nothing, can be repeated, and never reaches outside its directory."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from app.errors import ArtifactNotFound
from app.storage import InvalidNameError, check_name
from app.storage.local import MANIFEST, ArtifactStore, describe, write_manifest

CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5000, "plots/loss.svg": b"<svg/>"}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package")


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    with TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def write_package(directory: Path) -> Path:
    for name, content in CONTENTS.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def test_publishes_every_file_with_its_size_and_digest(store: ArtifactStore, package: Path) -> None:
    files = store.publish("job_1", 2, package)

    assert [file.name for file in files] == sorted(CONTENTS)
    for file in files:
        content = CONTENTS[file.name]
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert store.path("job_1", 2, file.name).read_bytes() == content


def test_tells_the_media_type_by_the_name(store: ArtifactStore, package: Path) -> None:
    types = {file.name: file.media_type for file in store.publish("job_1", 1, package)}

    assert types == {
        "config.json": "application/json",
        "model.safetensors": "application/octet-stream",
        "plots/loss.svg": "image/svg+xml",
    }


def test_moves_the_files_instead_of_copying_them(store: ArtifactStore, package: Path) -> None:
    inode = (package / "model.safetensors").stat().st_ino

    store.publish("job_1", 1, package)

    assert store.path("job_1", 1, "model.safetensors").stat().st_ino == inode
    assert not package.exists()


def test_copies_across_file_systems(store: ArtifactStore, other_file_system: Path) -> None:
    package = write_package(other_file_system / "package")

    store.publish("job_1", 1, package)

    assert store.path("job_1", 1, "model.safetensors").read_bytes() == CONTENTS["model.safetensors"]
    assert not package.exists()


def test_publishing_again_answers_as_the_first_time(store: ArtifactStore, package: Path) -> None:
    first = store.publish("job_1", 1, package)

    assert store.publish("job_1", 1, package) == first


def test_what_is_published_does_not_change(store: ArtifactStore, package: Path, tmp_path: Path) -> None:
    first = store.publish("job_1", 1, package)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes(b'{"changed": true}')

    assert store.publish("job_1", 1, other) == first
    assert store.path("job_1", 1, "config.json").read_bytes() == CONTENTS["config.json"]


def test_goes_on_after_a_crash_between_moving_and_appearing(store: ArtifactStore, package: Path) -> None:
    incoming = store.root / "job_1" / ".incoming-1"
    incoming.parent.mkdir(parents=True)
    package.rename(incoming)
    write_manifest(incoming, (describe(incoming, "config.json"),))

    assert [file.name for file in store.publish("job_1", 1, package)] == sorted(CONTENTS)


def test_attempts_do_not_see_each_other(store: ArtifactStore, package: Path) -> None:
    store.publish("job_1", 1, package)

    with pytest.raises(ArtifactNotFound):
        store.path("job_1", 2, "config.json")


def test_an_interrupted_attempt_is_not_visible(store: ArtifactStore, package: Path) -> None:
    (package / "link").symlink_to("/etc/hostname")

    with pytest.raises(InvalidNameError, match="link"):
        store.publish("job_1", 1, package)
    with pytest.raises(ArtifactNotFound):
        store.path("job_1", 1, "config.json")


def test_a_missing_directory_is_an_error(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.publish("job_1", 1, tmp_path / "nothing")


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


def test_clients_cannot_read_the_manifest(store: ArtifactStore, package: Path) -> None:
    store.publish("job_1", 1, package)

    with pytest.raises(ArtifactNotFound):
        store.path("job_1", 1, MANIFEST)
    assert json.loads((store.root / "job_1" / "1" / MANIFEST).read_text())["files"]


def test_reads_exactly_the_range(store: ArtifactStore, package: Path) -> None:
    store.publish("job_1", 1, package)

    chunks = list(store.read("job_1", 1, "model.safetensors", 1000, 1_200_000))

    assert b"".join(chunks) == CONTENTS["model.safetensors"][1000:1_200_000]
    assert len(chunks) == 2


def test_reading_survives_discarding(store: ArtifactStore, package: Path) -> None:
    store.publish("job_1", 1, package)
    chunks = store.read("job_1", 1, "config.json", 0, 2)

    store.discard("job_1", 1)

    assert b"".join(chunks) == b"{}"


def test_discarding_leaves_nothing_and_can_be_repeated(store: ArtifactStore, package: Path) -> None:
    store.publish("job_1", 1, package)

    store.discard("job_1", 1)
    store.discard("job_1", 1)

    assert list(store.root.iterdir()) == []


def test_discarding_one_attempt_keeps_the_others(store: ArtifactStore, package: Path, tmp_path: Path) -> None:
    store.publish("job_1", 1, package)
    store.publish("job_1", 2, write_package(tmp_path / "second"))

    store.discard("job_1", 1)

    assert store.path("job_1", 2, "config.json").is_file()


def test_a_job_id_cannot_lead_outside(store: ArtifactStore, package: Path) -> None:
    with pytest.raises(InvalidNameError):
        store.publish("../job_1", 1, package)
