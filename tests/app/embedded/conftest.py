"""Owners of embedded servers as processes of their own, which tests may kill."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.embedded import embedded_servers
from app.settings import Settings
from tests.support.waiting import PATIENCE_SECONDS

OWNER = """
import sys
from pathlib import Path
from app.embedded import embedded_servers, process
from app.settings import Settings

if "servers-outlive-owner" in sys.argv:
    process.stopped_with_parent = lambda stop_signal: ()
with embedded_servers(Settings(data_dir=Path(sys.argv[1]))) as settings:
    try:
        print(settings.database_url.get_secret_value(), flush=True)
        print(settings.redis_url.get_secret_value(), flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        import psycopg
        with psycopg.connect(settings.database_url.get_secret_value()):
            print("the database still answers", flush=True)
"""


@dataclass
class Owner:
    """A process that holds embedded servers until its input is closed."""

    process: subprocess.Popen[str]
    database_url: str
    redis_url: str

    def end(self) -> str:
        """Lets it end normally; what it wrote to stderr."""
        _, stderr = self.process.communicate(timeout=PATIENCE_SECONDS)
        return stderr


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose servers have run once, for tests that are not about the first start."""
    data_dir = tmp_path_factory.mktemp("initialised")
    with embedded_servers(Settings(data_dir=data_dir)):
        pass
    return data_dir


@pytest.fixture
def data_dir(initialised: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "data"
    subprocess.run(["cp", "-a", initialised, copy], check=True)
    return copy


@pytest.fixture
def start_owner() -> Iterator[Callable[..., Owner]]:
    started: list[subprocess.Popen[str]] = []

    def start(data_dir: Path, *words: str, prefix: tuple[str, ...] = (), **options: Any) -> Owner:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", OWNER, str(data_dir), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        assert process.stdout is not None
        return Owner(process, process.stdout.readline().strip(), process.stdout.readline().strip())

    yield start
    for process in started:
        if process.poll() is None:
            process.communicate(timeout=PATIENCE_SECONDS)
