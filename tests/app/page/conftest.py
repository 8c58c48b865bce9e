"""The page in front of a real database, with jobs in every state."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.db import Sessions
from app.settings import ServerSettings
from tests.support.api import api
from tests.support.gallery import Gallery
from tests.support.html_pages import BROWSER


@pytest.fixture
def gallery(settings: ServerSettings, sessions: Sessions, tmp_path: Path) -> Gallery:
    return Gallery(settings, sessions, tmp_path / "packages")


@pytest.fixture
def browser(settings: ServerSettings, engine: Engine) -> Iterator[TestClient]:
    """A client that asks for what a browser asks for, of a service without keys."""
    with api(settings) as client:
        client.headers.update(BROWSER)
        yield client
