"""Children that compute nothing, for tests of what surrounds them."""

from pathlib import Path

import pytest

from app.settings import Settings
from tests.support.children import FETCHES, FINISHES, Put, write_children
from workers import child


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts programs in the place of the children, and returns the directory that they lie in."""

    def put(runner: str = FINISHES, fetch: str = FETCHES) -> Path:
        monkeypatch.setattr(child, "ROOT", write_children(tmp_path / "path", runner, fetch))
        return child.ROOT

    return put


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings with which a job that comes back is due at once."""
    return settings.model_copy(update={"retry_delay_seconds": 0.0, "stop_grace_seconds": 0.0})
