"""A service's settings with directories of its own and a hub on loopback; no database is needed here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import SourceSettings
from tests.support.hub import LoopbackHub, running_hub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def settings(hub: LoopbackHub, model_root: Path, data_root: Path) -> SourceSettings:
    return SourceSettings(model_roots=(model_root,), data_roots=(data_root,), hub_endpoint=hub.endpoint)
