"""The whole road, for a model that the hub shows to its owner only."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from app import serve
from app.settings import ServerSettings
from modelpress.client import Client
from tests.support.hub import running_hub
from tests.support.processes import serve_recorded
from tests.support.strangers import finish


def test_a_private_model_of_the_hub_is_compressed_at_its_commit_and_the_token_is_nowhere(
    settings: ServerSettings,
    engine: Engine,
    tiny: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_recorded(monkeypatch)
    with running_hub() as hub:
        files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
        repository = hub.add("team/tiny", files)
        repository.private, hub.token = True, "hf_a_secret_token"
        changes = {"port": 0, "hub_enabled": True, "hub_endpoint": hub.endpoint, "hub_token": SecretStr(hub.token)}
        with (
            serve.running_service(settings.model_copy(update=changes), log_dir=tmp_path / "logs") as service,
            Client(service.address, api_key=service.first_key) as client,
        ):
            job = finish(client, {**tiny, "model": "team/tiny"})
    assert job.source.revision == repository.commit
    assert hub.token not in job.model_dump_json()
    for path in [*(tmp_path / "logs").iterdir(), *settings.data_dir.rglob("*.json")]:
        assert hub.token not in path.read_text()
