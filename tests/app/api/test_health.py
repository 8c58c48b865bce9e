"""Alive, ready, degraded."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session

from app.settings import Settings
from tests.support.api import api
from tests.support.waiting import wait_for

NOBODY = SecretStr("postgresql://127.0.0.1:1/nothing")


@pytest.fixture
def without_migrations(engine: Engine) -> Iterator[None]:
    with engine.begin() as connection:
        newest = connection.scalar(text("DELETE FROM alembic_version RETURNING version_num"))
    yield
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO alembic_version VALUES (:newest)"), {"newest": newest})


def test_is_ready_with_database_and_broker(client: TestClient) -> None:
    response = client.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"status": "ready", "broker": "ready"})


def test_is_degraded_and_ready_without_the_broker(settings: Settings, engine: Engine) -> None:
    with api(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})) as client:
        response = client.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"status": "degraded", "broker": "unavailable"})


def test_is_alive_and_not_ready_without_the_database(settings: Settings) -> None:
    with api(settings.model_copy(update={"database_url": NOBODY})) as client:
        alive, ready = client.get("/livez"), client.get("/readyz")

    assert alive.json() == {"status": "alive"}
    assert (ready.status_code, ready.json()["type"]) == (503, "/problems/database_unavailable")
    assert "Retry-After" in ready.headers


def test_is_not_ready_without_its_migrations(client: TestClient, without_migrations: None) -> None:
    response = wait_for(lambda: None if client.get("/readyz").status_code == 200 else client.get("/readyz"))

    assert (response.status_code, response.json()["type"]) == (503, "/problems/not_migrated")
    assert "modelpress migrate" in response.json()["detail"]


def test_is_not_ready_on_the_files_of_another_database(settings: Settings, engine: Engine) -> None:
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / "database").write_text("another")
    with api(settings) as client:
        response = client.get("/readyz")

    assert (response.status_code, response.json()["type"]) == (503, "/problems/foreign_data_directory")


def test_a_post_says_that_the_database_only_answers_reads(client: TestClient, tiny: dict[str, Any]) -> None:
    def demote(session: Session, transaction: Any, connection: Connection) -> None:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    event.listen(Session, "after_begin", demote)
    try:
        response = client.post("/jobs", json=tiny)
    finally:
        event.remove(Session, "after_begin", demote)

    assert (response.status_code, response.json()["type"]) == (503, "/problems/database_unavailable")


def test_every_request_says_that_the_database_is_down(settings: Settings) -> None:
    with api(settings.model_copy(update={"database_url": NOBODY})) as client:
        response = client.get("/jobs")

    assert (response.status_code, response.json()["type"]) == (503, "/problems/database_unavailable")
    assert "127.0.0.1" not in response.text
