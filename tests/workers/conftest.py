"""A hub, and requests to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.settings import SourceSettings
from modelpress.contract.recipe import Recipe
from tests.support.fetching import NAME, MakeRequest
from tests.support.hub import LoopbackHub, running_hub
from workers.fetch import FetchRequest


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def request_for(hub: LoopbackHub, tmp_path: Path, model_root: Path, data_root: Path) -> MakeRequest:
    def make(model: str = NAME, **changes: Any) -> FetchRequest:
        repository = hub.repositories.get(("models", model))
        values: dict[str, Any] = {
            "model": model,
            "revision": repository.commit if repository else None,
            "texts": (),
            "recipe": Recipe(model="local:model", target_ratio=1.3),
            "sources_dir": tmp_path / "sources",
            "sources": SourceSettings(
                model_roots=(model_root,),
                data_roots=(data_root,),
                hub_endpoint=hub.endpoint,
                hub_token=None if hub.token is None else SecretStr(hub.token),
            ),
            "retry_delays": (0.0, 0.0),
        }
        return FetchRequest(**values | changes)

    return make
