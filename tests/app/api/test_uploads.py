"""Text that a team brings along: sent in pieces, checked, kept once, named in recipes, and nobody else's."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.db import Sessions
from app.errors import StorageUnavailable
from app.jobs.upload_service import Part
from app.keys.setup import issue_key, set_limits
from app.settings import ServerSettings
from modelpress.client import Client
from modelpress.contract.access import KeyRequest, Scope
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import TextFormat, UploadRequest
from tests.support.api import api
from tests.support.server import connect, serving
from tests.support.waiting import wait_for
from workers import uploads as copies

TEXT = b"The quick brown fox jumps over the lazy dog.\n" * 100
DIGEST = hashlib.sha256(TEXT).hexdigest()


def begin(client: TestClient, content: bytes = TEXT, **changes: Any) -> httpx2.Response:
    return client.post("/uploads", json={"name": "fox", "format": "txt", "bytes": len(content)} | changes)


def send(client: TestClient, upload: str, piece: bytes, offset: int) -> httpx2.Response:
    headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
    return client.patch(f"/uploads/{upload}", content=piece, headers=headers)


def uploaded(client: TestClient, content: bytes = TEXT, **changes: Any) -> str:
    """Return the id of an upload with these contents."""
    upload = begin(client, content, **changes).json()["id"]
    done = send(client, upload, content, 0)
    assert done.status_code == 200, done.text
    return str(done.json()["id"])


def problem(response: httpx2.Response) -> str:
    return str(response.json()["type"]).rpartition("/")[2]


def test_a_file_arrives_piece_by_piece_from_where_it_broke_off(client: TestClient) -> None:
    begun = begin(client)
    upload = begun.json()["id"]
    assert (begun.status_code, begun.headers["Location"]) == (201, f"/uploads/{upload}")

    assert send(client, upload, TEXT[:1000], 0).json()["received"] == 1000
    assert client.head(f"/uploads/{upload}").headers["Upload-Offset"] == "1000"
    wrong = send(client, upload, TEXT[900:], 900)
    assert (wrong.status_code, problem(wrong), wrong.headers["Upload-Offset"]) == (409, "wrong_offset", "1000")
    done = send(client, upload, TEXT[1000:], 1000).json()

    assert done["completed_at"] is not None
    assert done["sha256"] == DIGEST
    assert client.get("/uploads").json()["uploads"] == [done]
    assert problem(send(client, upload, b"more", len(TEXT))) == "wrong_offset"


def test_an_upload_that_breaks_off_goes_on_where_it_was(
    settings: ServerSettings, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "fox.txt").write_bytes(TEXT)
    with serving(settings) as url, Client(url) as client:
        announced = UploadRequest(name="fox.txt", format=TextFormat.TXT, bytes=len(TEXT), sha256=DIGEST)
        upload = client.begin_upload(announced).id
        with connect(url) as connection:
            head = f"PATCH /uploads/{upload} HTTP/1.1\r\nHost: localhost\r\nUpload-Offset: 0"
            connection.sendall(f"{head}\r\nContent-Length: {len(TEXT)}\r\n\r\n".encode() + TEXT[:500])
            wait_for(lambda: client.get_upload(upload).received == 500)
        assert client.upload(tmp_path / "fox.txt").sha256 == DIGEST
        assert [each.received for each in client.uploads()] == [len(TEXT)]


def test_the_same_text_is_kept_once(client: TestClient) -> None:
    first = uploaded(client)

    known = begin(client, sha256=DIGEST)
    assert (known.status_code, known.json()["id"]) == (200, first)
    assert uploaded(client) == first
    assert [upload["id"] for upload in client.get("/uploads").json()["uploads"]] == [first]


@pytest.mark.parametrize(
    ("content", "changes", "field"),
    [
        (b"\xff\xfe\x00" * 9, {}, "format"),
        (b'{"text": "a"}\n{"text": 7}\n', {"format": "jsonl"}, "format"),
        (b"plain text", {"format": "jsonl"}, "format"),
        (TEXT, {"sha256": "0" * 64}, "sha256"),
        (b" \n ", {}, "format"),
    ],
)
def test_what_is_no_such_text_is_refused_and_gone(
    client: TestClient, content: bytes, changes: dict[str, Any], field: str
) -> None:
    upload = begin(client, content, **changes).json()["id"]
    refused = send(client, upload, content, 0)

    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field)
    assert client.get(f"/uploads/{upload}").status_code == 404


@pytest.mark.parametrize("published", [False, True])
def test_a_file_whose_check_was_cut_short_is_checked_when_it_is_asked_for_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    storage: Any = client.app.state.storage  # type: ignore[attr-defined]
    publish = storage.publish

    def fails(*arguments: Any) -> None:
        if published:
            publish(*arguments)
        raise StorageUnavailable("the store is down")

    upload = begin(client).json()["id"]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", fails)
        assert problem(send(client, upload, TEXT, 0)) == "storage_unavailable"
    done = send(client, upload, b"", len(TEXT))

    assert done.status_code == 200, done.text
    assert (done.json()["sha256"], done.json()["completed_at"] is not None) == (DIGEST, True)


def test_an_upload_that_is_deleted_while_it_arrives_leaves_nothing(
    client: TestClient, settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(client).json()["id"]
    append = Part.append

    def delete_first(part: Part, data: bytes) -> None:
        client.delete(f"/uploads/{upload}")
        (settings.uploads_dir / upload).mkdir(exist_ok=True)  # as by a request that has looked just before
        append(part, data)

    monkeypatch.setattr(Part, "append", delete_first)
    assert send(client, upload, TEXT[:100], 0).status_code == 404
    assert not (settings.uploads_dir / upload).exists()


def test_a_disk_that_is_full_is_told_as_such(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    upload = begin(client).json()["id"]
    monkeypatch.setattr(Part, "append", full)
    refused = send(client, upload, TEXT, 0)
    assert (refused.status_code, problem(refused)) == (503, "storage_unavailable")
    assert "No space left" in refused.json()["detail"]


def test_a_piece_that_would_take_the_reserved_room_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(client).json()["id"]
    monkeypatch.setattr("app.jobs.upload_service.lack_of_room", lambda *_: "the disk has no room")
    assert problem(send(client, upload, TEXT, 0)) == "storage_unavailable"


def test_no_more_than_was_announced_is_taken(client: TestClient) -> None:
    upload = begin(client, bytes=10).json()["id"]
    assert problem(send(client, upload, TEXT, 0)) == "upload_too_large"


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(settings: ServerSettings, engine: Engine) -> None:
    with api(settings.model_copy(update={"max_upload_bytes": 100})) as client:
        refused = begin(client, bytes=101)
    assert refused.json()["errors"] == [{"field": "bytes", "message": "this service takes files of up to 100 bytes"}]


def test_a_recipe_names_an_upload_which_stays_while_a_job_needs_it(client: TestClient, tiny: dict[str, Any]) -> None:
    upload = uploaded(client)
    job = client.post("/jobs", json=tiny | {"calibration": tiny["calibration"] | {"datasets": [upload]}})

    assert job.status_code == 202, job.text
    assert upload in client.get("/datasets").json()["references"]
    assert problem(client.delete(f"/uploads/{upload}")) == "upload_in_use"
    client.post(f"/jobs/{job.json()['id']}/cancel")
    assert client.delete(f"/uploads/{upload}").status_code == 204
    assert client.get(f"/uploads/{upload}").status_code == 404


def test_a_recipe_cannot_name_what_has_not_arrived(client: TestClient, tiny: dict[str, Any]) -> None:
    upload = begin(client).json()["id"]
    for name, said in ((upload, "has not arrived as a whole"), (f"upload_{'0' * 24}", "the team has no")):
        refused = client.post("/jobs", json=tiny | {"calibration": {"datasets": [name]}})
        assert refused.status_code == 422
        (error,) = [each for each in refused.json()["errors"] if each["field"] == "calibration.datasets.0"]
        assert said in error["message"]


def test_a_worker_reads_what_was_sent(
    client: TestClient, tiny: dict[str, Any], settings: ServerSettings, sessions: Sessions, tmp_path: Path
) -> None:
    lines = b'{"text": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n'
    upload = uploaded(client, lines, format="jsonl")
    recipe = tiny | {"calibration": tiny["calibration"] | {"datasets": [upload]}}
    job = client.post("/jobs", json=recipe).json()["id"]
    storage = client.app.state.storage  # type: ignore[attr-defined]

    files = copies.bring(sessions, storage, tmp_path / "copies", job, Recipe.model_validate(recipe))
    assert {name: (file.suffix, file.read_bytes()) for name, file in files.items()} == {upload: (".jsonl", lines)}


def test_two_workers_may_copy_the_same_upload_at_once(
    client: TestClient, tiny: dict[str, Any], sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = uploaded(client)
    recipe = tiny | {"calibration": tiny["calibration"] | {"datasets": [upload]}}
    job = client.post("/jobs", json=recipe).json()["id"]
    storage: Any = client.app.state.storage  # type: ignore[attr-defined]
    stored = storage.open

    def bring() -> bytes:
        files = copies.bring(sessions, storage, tmp_path / "copies", job, Recipe.model_validate(recipe))
        return files[upload].read_bytes()

    class Interrupted(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            yield TEXT[:100]
            monkeypatch.setattr(storage, "open", stored)
            assert bring() == TEXT
            yield TEXT[100:]

        def close(self) -> None:
            """Close nothing."""

    monkeypatch.setattr(storage, "open", lambda *_: Interrupted())
    assert bring() == TEXT


def test_uploads_count_as_what_a_team_stores(client: TestClient, sessions: Sessions) -> None:
    set_limits(sessions, "default", max_queued=None, max_running=None, max_stored_bytes=len(TEXT))
    upload = uploaded(client)

    assert client.get("/team").json()["stored_bytes"]["used"] == len(TEXT)
    assert problem(begin(client, b"other")) == "quota_exceeded"
    client.delete(f"/uploads/{upload}")
    assert begin(client, b"other").status_code == 201


def test_an_upload_is_that_of_its_team_alone(
    settings: ServerSettings, engine: Engine, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    request = KeyRequest(name="test", scopes=frozenset(Scope))
    ours, theirs = (
        {"Authorization": f"Bearer {issue_key(sessions, team, request).token}"} for team in ("search", "ads")
    )
    with api(settings, is_open=False) as client:
        client.headers.update(ours)
        upload = uploaded(client)
        client.headers.update(theirs)
        assert client.get(f"/uploads/{upload}").status_code == 404
        assert client.delete(f"/uploads/{upload}").status_code == 404
        assert send(client, upload, b"x", 0).status_code == 404
        assert client.get("/uploads").json()["uploads"] == []
        assert client.post("/jobs", json=tiny | {"calibration": {"datasets": [upload]}}).status_code == 422
        assert uploaded(client) != upload
    with engine.connect() as connection:
        actions = connection.execute(text("SELECT action FROM audit WHERE team = 'search' ORDER BY id")).scalars().all()
    assert actions[-2:] == ["upload.begun", "upload.completed"]


def test_what_was_begun_long_ago_is_forgotten(settings: ServerSettings, engine: Engine) -> None:
    with api(settings.model_copy(update={"keep_work_seconds": 0.0})) as client:
        abandoned = begin(client).json()["id"]
        send(client, abandoned, TEXT[:10], 0)
        begin(client)
        assert client.get(f"/uploads/{abandoned}").status_code == 404
    assert not (settings.uploads_dir / abandoned).exists()
