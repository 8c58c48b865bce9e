"""Connections to the database."""

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from app.db import make_engine, make_sessions, reading
from app.settings import ServerSettings


def break_off(engine: Engine, other: Engine) -> None:
    """Let the server close the one connection that waits in the pool of `other`."""
    with other.connect() as connection:
        process = connection.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:process, 5000)"), {"process": process})


def test_a_connection_is_tried_before_it_is_used(servers: ServerSettings, engine: Engine) -> None:
    other = make_engine(servers.database_url, pool_size=1)
    break_off(engine, other)
    with other.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    other.dispose()


def test_one_that_has_just_worked_is_trusted_and_after_a_failure_none_is(
    servers: ServerSettings, engine: Engine
) -> None:
    other = make_engine(servers.database_url, pool_size=2, trusted_seconds=60.0)
    break_off(engine, other)
    with other.connect() as connection, pytest.raises(OperationalError):
        connection.execute(text("SELECT 1"))
    with other.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    other.dispose()


def test_statements_of_a_reading_session_are_transactions_of_their_own(engine: Engine) -> None:
    sessions = make_sessions(engine)
    with reading(sessions) as session:
        moments = {session.scalar(text("SELECT now()")) for _ in range(2)}
    with sessions() as session:
        kept = {session.scalar(text("SELECT now()")) for _ in range(2)}
    assert (len(moments), len(kept)) == (2, 1)
