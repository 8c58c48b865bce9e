"""Children that compute nothing, for tests of what surrounds them."""

from pathlib import Path

import pytest

from app.settings import Settings
from tests.support.children import FETCHES, FINISHES, Put
from workers import child


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts programs in the place of the children, and returns the directory that they lie in."""
    package = tmp_path / "path" / "workers"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()

    def put(runner: str = FINISHES, fetch: str = FETCHES) -> Path:
        for module, body in (("fetch", fetch), ("runner", runner)):
            (package / f"{module}.py").write_text(f"import json, os, signal, sys, time\n{body}\n")
        monkeypatch.setattr(child, "ROOT", package.parent)
        return package.parent

    return put


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings with which a job that comes back is due at once."""
    return settings.model_copy(update={"retry_delay_seconds": 0.0, "stop_grace_seconds": 0.0})
