"""Fixtures that start real things: one PostgreSQL and one Valkey for the whole run, a clean database for each test."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.db import Sessions, make_engine, make_sessions, upgrade
from app.embedded import embedded_servers
from app.embedded.postgres import OPTIONS
from app.jobs.service import JobService
from app.settings import ServerSettings, Settings
from app.sources.models import ModelSources
from app.sources.text import TextSources
from tests.support.doorbell import SilentDoorbell
from tests.support.service import delete_jobs, service_settings, tiny_recipe
from tests.support.text_models import write_tiny_gpt2, write_tiny_model

# What is imported and collected stays. To look through it for garbage again and again takes two fifths of the time.
gc.disable()

# A run that was started in the background ignores Ctrl-C, and so would every process that a test sends one.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


LONGEST = (
    "tests/test_lint.py",
    "tests/service/",
    "tests/faults/",
    "tests/workers/stages/test_ranks.py",
    "tests/extensions/",
    "tests/app/test_",
    "tests/modelpress/test_cli.py",
)
"""Where the tests stand that start whole services, or take long in one piece."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: one that begins last would leave the other processes without work."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSettings]:
    """Settings with the URLs of a running database and broker."""
    base = tmp_path_factory.mktemp("servers")
    with pytest.MonkeyPatch.context() as patch:
        # No test pulls the plug of the machine, and a disk that others write to makes each commit wait.
        patch.setitem(OPTIONS, "fsync", "off")
        with embedded_servers(Settings(data_dir=base, database_url=None, redis_url=None)) as settings:
            yield settings


@pytest.fixture(scope="session")
def migrated(servers: ServerSettings) -> Iterator[Engine]:
    engine = make_engine(servers.database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(migrated: Engine) -> Engine:
    delete_jobs(migrated)
    return migrated


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    return make_sessions(engine)


@pytest.fixture
def model_root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture
def settings(servers: ServerSettings, tmp_path: Path) -> ServerSettings:
    """Settings of a service with a data directory of its own, short leases and quick sweeps, and no hub."""
    return service_settings(servers, tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that compresses within seconds."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny(tiny_model: Path, model_root: Path, data_root: Path) -> dict[str, Any]:
    """The body of a POST for the tiny model, which the service finds under its roots."""
    return tiny_recipe(tiny_model, model_root, data_root)


@pytest.fixture
def tiny_gpt2(tiny: dict[str, Any], model_root: Path) -> dict[str, Any]:
    """Return the body of a POST for a GPT-2, without a method; each preset has a ratio of its own on it."""
    write_tiny_gpt2(model_root / "tiny-gpt2")
    return {**tiny, "model": "local:tiny-gpt2"}


@pytest.fixture
def doorbell() -> SilentDoorbell:
    return SilentDoorbell()


@pytest.fixture
def service(settings: ServerSettings, sessions: Sessions, doorbell: SilentDoorbell) -> JobService:
    return JobService(settings, sessions, ModelSources(settings.sources), TextSources(settings.sources), doorbell)
