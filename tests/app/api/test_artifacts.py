"""Downloads: whole, resumable, checkable."""

import base64
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.db import Sessions
from app.settings import Settings
from app.storage.registry import BACKENDS
from modelpress.contract.job import Job
from tests.support.api import Finished, api, finish
from tests.support.memory_storage import MemoryStorage

NAME = "model.safetensors"


@pytest.fixture
def address(finished: Finished) -> str:
    return f"/jobs/{finished.id}/artifacts/{NAME}"


@pytest.fixture
def content(finished: Finished) -> bytes:
    return finished.contents[NAME]


@pytest.fixture
def archive(finished: Finished) -> str:
    return f"/jobs/{finished.id}/checkpoint"


def test_lists_every_file_with_a_link_that_leads_to_it(client: TestClient, finished: Finished) -> None:
    artifacts = client.get(f"/jobs/{finished.id}/artifacts").json()["artifacts"]

    assert [artifact["name"] for artifact in artifacts] == sorted(finished.contents)
    for artifact in artifacts:
        body = client.get(artifact["href"]).content
        assert len(body) == artifact["bytes"]
        assert hashlib.sha256(body).hexdigest() == artifact["sha256"]


def test_an_unfinished_job_has_no_files(client: TestClient, post: Callable[[], Job]) -> None:
    address = f"/jobs/{post().id}"

    assert client.get(f"{address}/artifacts").json() == {"artifacts": []}
    assert client.get(f"{address}/artifacts/config.json").status_code == 409
    refused = client.get(f"{address}/checkpoint")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/not_finished")
    assert "queued" in refused.json()["detail"]


def test_a_job_that_failed_its_gate_has_its_files_and_its_checkpoint(client: TestClient, below_gate: Finished) -> None:
    job = client.get(f"/jobs/{below_gate.id}").json()

    assert (job["state"], job["error"]["code"]) == ("failed", "quality_gate")
    assert job["metrics"] is not None
    assert len(client.get(job["links"]["artifacts"]).json()["artifacts"]) == len(below_gate.contents)
    with tarfile.open(fileobj=io.BytesIO(client.get(job["links"]["checkpoint"]).content)) as archive:
        assert len(archive.getnames()) >= len(below_gate.contents)


def test_a_download_can_be_checked_by_its_headers(client: TestClient, address: str, content: bytes) -> None:
    response = client.get(address)

    digest = hashlib.sha256(content)
    assert response.content == content
    assert response.headers["Content-Length"] == str(len(content))
    assert response.headers["ETag"] == f'"sha256-{digest.hexdigest()}"'
    assert response.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{NAME}"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "private, no-cache"


def test_head_tells_what_get_would_send(client: TestClient, address: str, archive: str) -> None:
    for url in (address, archive):
        head, get = client.head(url), client.get(url)
        for name in ("X-Request-Id", "RateLimit"):  # each request has its own
            del head.headers[name], get.headers[name]

        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == get.headers


def test_head_is_of_the_whole_whatever_range_is_asked_for(client: TestClient, address: str, content: bytes) -> None:
    for asked in ("bytes=0-9", "bytes=99999999-"):
        head = client.head(address, headers={"Range": asked})

        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(content)))


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("0-0", 0, 1), ("100-2000", 100, 2001), ("2000000-", 2_000_000, None), ("-5", -5, None), ("5-99999999", 5, None)],
)
def test_a_range_is_served_alone(
    client: TestClient, address: str, content: bytes, asked: str, start: int, stop: int | None
) -> None:
    response = client.get(address, headers={"Range": f"bytes={asked}"})

    first, last, _ = slice(start, stop).indices(len(content))
    assert (response.status_code, response.content) == (206, content[start:stop])
    assert response.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(content)}"
    assert "Repr-Digest" in response.headers


@pytest.mark.parametrize("asked", ["bytes=x-y", "bytes=-", "bytes=9-3", "lines=0-5", "bytes=0-1,5-6", "bytes=²-5"])
def test_a_range_that_makes_no_sense_or_is_several_is_ignored(client: TestClient, address: str, asked: str) -> None:
    assert client.get(address, headers={b"Range": asked.encode("latin-1")}).status_code == 200


@pytest.mark.parametrize("asked", ["99999999-", "-0", "2304003-"])
def test_a_range_behind_the_end_is_refused_with_the_size(
    client: TestClient, address: str, content: bytes, asked: str
) -> None:
    response = client.get(address, headers={"Range": f"bytes={asked}"})

    assert (response.status_code, response.json()["type"]) == (416, "/problems/range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{len(content)}"


def test_a_cut_download_goes_on_where_it_stopped(client: TestClient, address: str, content: bytes) -> None:
    etag = client.head(address).headers["ETag"]

    rest = client.get(address, headers={"Range": "bytes=1234-", "If-Range": etag})

    assert (rest.status_code, content[:1234] + rest.content) == (206, content)


def test_another_file_is_never_appended(client: TestClient, address: str, content: bytes) -> None:
    whole = client.get(address, headers={"Range": "bytes=1234-", "If-Range": '"sha256-other"'})

    assert (whole.status_code, whole.content) == (200, content)


def test_a_file_that_the_client_has_is_not_sent_again(client: TestClient, address: str, archive: str) -> None:
    for url in (address, archive):
        etag = client.head(url).headers["ETag"]

        response = client.get(url, headers={"If-None-Match": etag, "Range": "bytes=0-1"})

        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == etag


@pytest.mark.parametrize(
    "name", ["unknown", ".manifest.json", "../1/config.json", "..%2f1%2fconfig.json", "%00", "%2fetc%2fpasswd", "plots"]
)
def test_only_listed_files_are_served(client: TestClient, finished: Finished, name: str) -> None:
    response = client.get(f"/jobs/{finished.id}/artifacts/{name}")

    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"


def test_a_file_that_is_gone_is_not_found(
    client: TestClient, finished: Finished, settings: Settings, address: str, archive: str
) -> None:
    (settings.data_dir / "artifacts" / finished.id / "1" / NAME).unlink()

    for url in (address, archive):
        assert client.get(url).json()["type"] == "/problems/artifact_not_found"


def test_the_checkpoint_unpacks_to_the_files(client: TestClient, finished: Finished, archive: str) -> None:
    response = client.get(archive)

    assert response.headers["Content-Type"] == "application/x-tar"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{finished.id}.tar"'
    assert int(response.headers["Content-Length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        unpacked = {member.name: tar.extractfile(member).read() for member in tar}
    assert unpacked == {f"{finished.id}/{name}": content for name, content in finished.contents.items()}


def test_the_checkpoint_is_the_same_each_time_and_resumable(client: TestClient, archive: str) -> None:
    whole = client.get(archive)
    half = len(whole.content) // 2

    rest = client.get(archive, headers={"Range": f"bytes={half}-", "If-Range": whole.headers["ETag"]})

    assert rest.status_code == 206
    assert whole.content[:half] + rest.content == whole.content


def test_another_storage_backend_serves_the_same_files(
    settings: Settings, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryStorage()
    monkeypatch.setitem(BACKENDS, "memory", lambda url: memory)
    settings = settings.model_copy(update={"storage_url": "memory://artifacts"})
    finished = finish(settings, sessions, tmp_path)

    with api(settings) as client:
        for name, content in finished.contents.items():
            assert client.get(f"/jobs/{finished.id}/artifacts/{name}").content == content
    assert not (settings.data_dir / "artifacts").exists()


@pytest.mark.parametrize("path", ["artifacts/model.safetensors", "checkpoint"])
def test_a_download_before_the_end_is_told_to_come_again(
    client: TestClient, post: Callable[[], Job], path: str
) -> None:
    response = client.get(f"/jobs/{post().id}/{path}", headers={"Range": "bytes=0-"})

    assert (response.status_code, response.json()["type"]) == (409, "/problems/not_finished")
    assert int(response.headers["Retry-After"]) >= 1
