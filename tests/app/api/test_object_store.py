"""Downloads where the files lie in an object store: through the API, or from the store itself."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.db import Sessions
from app.settings import ServerSettings
from modelpress.client import Client
from tests.support.api import CONTENTS, Finished, api, finish
from tests.support.object_store import Store
from tests.support.server import serving
from tests.support.waiting import PATIENCE_SECONDS

NAME = "model.safetensors"


@pytest.fixture
def settings(settings: ServerSettings, object_store: Store) -> ServerSettings:
    return settings.model_copy(update={"storage_url": "s3://bucket/prefix"})


@pytest.fixture
def linking(settings: ServerSettings) -> Iterator[TestClient]:
    """An API that leads its clients to the store."""
    with api(settings.model_copy(update={"link_seconds": 60.0})) as client:
        yield client


def test_files_come_through_the_api_in_ranges(client: TestClient, finished: Finished) -> None:
    address = f"/jobs/{finished.id}/artifacts/{NAME}"
    whole = client.get(address)
    part = client.get(address, headers={"Range": "bytes=1000-1999"})
    assert (whole.status_code, whole.content) == (200, CONTENTS[NAME])
    assert (part.status_code, part.content) == (206, CONTENTS[NAME][1000:2000])


def test_a_download_leads_to_the_store_where_the_operator_says_so(linking: TestClient, finished: Finished) -> None:
    answer = linking.get(f"/jobs/{finished.id}/artifacts/{NAME}", follow_redirects=False)
    assert answer.status_code == 307
    assert httpx2.get(answer.headers["location"], timeout=PATIENCE_SECONDS).content == CONTENTS[NAME]
    assert answer.headers["cache-control"] == "no-store"


def test_the_store_is_not_shown_for_what_the_job_does_not_have(linking: TestClient, finished: Finished) -> None:
    answer = linking.get(f"/jobs/{finished.id}/artifacts/other.bin", follow_redirects=False)
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/artifact_not_found")


def test_the_client_follows_to_the_store_and_goes_on_where_it_broke_off(
    settings: ServerSettings, sessions: Sessions, tmp_path: Path, object_store: Store
) -> None:
    finished = finish(settings, sessions, tmp_path)
    with serving(settings.model_copy(update={"link_seconds": 60.0})) as address, Client(address) as client:
        (artifact,) = [each for each in client.artifacts(finished.id) if each.name == NAME]
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / f"{NAME}.{artifact.sha256[:12]}.part").write_bytes(CONTENTS[NAME][:1000])
        client.download(finished.id, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in CONTENTS} == CONTENTS


def test_a_store_that_is_down_is_answered_with_503(client: TestClient, finished: Finished, object_store: Store) -> None:
    object_store.faults = [503] * 100
    answer = client.get(f"/jobs/{finished.id}/artifacts/{NAME}")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/storage_unavailable")
    assert "Retry-After" in answer.headers
