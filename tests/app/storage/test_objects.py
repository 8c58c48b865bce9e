"""What only an object store has to stand: faults of the network, links that it serves itself, parts."""

from pathlib import Path

import httpx2
import pytest

from app.errors import StorageUnavailable
from app.storage import Storage, objects
from app.storage.objects import ObjectStorage
from tests.support.artifacts import CONTENTS
from tests.support.object_store import Store
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture
def storage(object_store: Store) -> Storage:
    return ObjectStorage.at("s3://bucket/prefix")


def read(storage: Storage, name: str) -> bytes:
    return b"".join(storage.open("job_1", 1, name, 0, len(CONTENTS[name])))


@pytest.mark.parametrize("fault", [503, "slow"])
def test_a_store_that_fails_now_and_then_loses_nothing(
    storage: Storage, object_store: Store, package: Path, fault: object
) -> None:
    object_store.faults = [fault, None, fault, None, None, fault]
    files = storage.publish("job_1", 1, package)
    object_store.faults = [fault, None, fault]
    assert {file.name: read(storage, file.name) for file in files} == CONTENTS


def test_a_download_that_the_store_cuts_goes_on(storage: Storage, object_store: Store, package: Path) -> None:
    storage.publish("job_1", 1, package)
    object_store.asked, object_store.faults = [], [None, "cut"]
    assert read(storage, "model.safetensors") == CONTENTS["model.safetensors"]
    assert [method for method, path in object_store.asked if path.endswith("model.safetensors")] == ["GET", "GET"]


def test_a_store_that_stays_down_makes_the_job_wait_and_shows_nothing_half(
    storage: Storage, object_store: Store, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "WRITING", {"max_retries": 0})
    impatient = ObjectStorage.at("s3://bucket/prefix")
    object_store.faults = [None, None, None, None, *[503] * 50]
    with pytest.raises(OSError, match="object store failed") as failed:
        impatient.publish("job_1", 1, package)
    object_store.faults = []
    assert isinstance(failed.value, StorageUnavailable)
    assert "secret-of-the-store" not in str(failed.value)
    assert not storage.exists("job_1", 1, "config.json")
    assert len(storage.publish("job_1", 1, package)) == len(CONTENTS)


def test_a_large_file_goes_up_in_parts(
    storage: Storage, object_store: Store, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    content = bytes(range(256)) * (12 << 12)
    (package / "model.safetensors").write_bytes(content)
    storage.publish("job_1", 1, package)
    assert [method for method, path in object_store.asked if path.endswith("model.safetensors")].count("PUT") == 3
    assert b"".join(storage.open("job_1", 1, "model.safetensors", 0, len(content))) == content


def test_a_link_leads_to_the_file_for_whoever_has_it_and_nobody_else(
    storage: Storage, object_store: Store, package: Path
) -> None:
    storage.publish("job_1", 1, package)
    link = storage.link("job_1", 1, "plots/loss.svg", 60.0)
    assert link is not None
    assert httpx2.get(link, timeout=PATIENCE_SECONDS).content == CONTENTS["plots/loss.svg"]
    assert "X-Amz-Expires=60" in link
    assert "secret-of-the-store" not in link
