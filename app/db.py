"""The database: engine, session factory, migrations."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.abc import PQGen
from psycopg.errors import UndefinedColumn, UndefinedTable
from pydantic import SecretStr
from sqlalchemy import DateTime, Engine, Text, create_engine, event, make_url
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 30.0
LOOK_SECONDS = 0.1
IDLE_IN_TRANSACTION_MILLISECONDS = 15_000
"""A process that is frozen inside a transaction must not hold its locks for longer."""

KEEPALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""What makes a connection that leads nowhere fail within seconds, for libpq."""

OUTAGES: Final = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
"""What says that the database cannot be used now, and not that the statement is wrong. It calls an InternalError that
it only answers reads, as after a failover, or has ended a transaction of a process that was frozen."""

Answer = TypeVar("Answer")

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it so
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[dict[str, Any]]: JSONB,
    }


class PatientConnection(psycopg.Connection[Any]):
    """A connection that waits for `patience_seconds` for each answer, and closes itself when none has come.

    The limits of server and kernel do not cover a server that is frozen, or a proxy in between that acknowledges and
    forwards nothing.
    """

    patience_seconds: float = STATEMENT_SECONDS
    answered_at: float = 0.0
    """When the server has last answered, on this process's clock."""

    def wait(self, gen: PQGen[Answer], interval: float = LOOK_SECONDS, timeout: float | None = None) -> Answer:
        """Return what the exchange `gen` returns. Raises OperationalError when the server takes too long."""
        try:
            answer = super().wait(limited(gen, self.patience_seconds), interval)
        except ServerSilent:
            self.close()
            raise
        self.answered_at = time.monotonic()
        return answer


class ServerSilent(psycopg.OperationalError):
    """The server has not answered for longer than this process waits."""


def limited(exchange: PQGen[Answer], seconds: float) -> PQGen[Answer]:
    """Go through an exchange with the server, and raise ServerSilent when it is not over after this time."""
    deadline = time.monotonic() + seconds
    try:
        wanted = next(exchange)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise ServerSilent(f"the server has not answered for {seconds:g} seconds")
            wanted = exchange.send(ready)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def make_engine(
    database_url: SecretStr,
    *,
    pool_size: int = 10,
    patience_seconds: float = STATEMENT_SECONDS,
    trusted_seconds: float = 0.0,
) -> Engine:
    """Return an engine on psycopg 3 that waits for no answer, no connection and no place in the pool for ever.

    Args:
        patience_seconds: how long a statement may take, on the server and on the way to it and back.
        trusted_seconds: for how long after an answer a connection is taken to work. An older one is tried before it is
            used, which costs an exchange with the server.
    """
    url = make_url(database_url.get_secret_value()).set(drivername="postgresql+psycopg")
    engine = create_engine(
        url,
        pool_size=pool_size,
        pool_timeout=patience_seconds,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": max(2, round(min(CONNECT_SECONDS, patience_seconds))),  # libpq knows whole seconds
            "options": f"-c statement_timeout={round(1000 * patience_seconds)} "
            f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MILLISECONDS}",
            **KEEPALIVE,
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> PatientConnection:
        connection = PatientConnection.connect(*arguments, **options)
        connection.patience_seconds = patience_seconds
        return connection

    ping = engine.dialect.do_ping

    def ping_if_needed(dbapi_connection: Any) -> bool:
        return time.monotonic() - dbapi_connection.answered_at < trusted_seconds or ping(dbapi_connection)

    engine.dialect.do_ping = ping_if_needed  # type: ignore[method-assign]  # nothing else lets the pool ask this
    return engine


def make_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def reading(sessions: Sessions) -> Iterator[Session]:
    """Yield a session whose statements are transactions of their own, which spares two exchanges with the server."""
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield session


def upgrade(engine: Engine) -> None:
    """Bring the schema to the newest migration; of several processes that try, one does it and the others wait.

    A schema of a newer version of the service is left as it is.
    """
    with engine.begin() as connection:
        if is_newer(MigrationContext.configure(connection).get_current_revision()):
            return
        config = migrations_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def lacks_migrations(error: ProgrammingError) -> bool:
    """Return whether a statement failed for want of a table or column, as on the schema of an older version."""
    return isinstance(error.orig, UndefinedTable | UndefinedColumn)


def at_head(engine: Engine) -> bool:
    """Return whether every migration that this code knows has been applied, and perhaps newer ones, too."""
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    return revision == newest_migration() or is_newer(revision)


def is_newer(revision: str | None) -> bool:
    """Return whether a newer version of the service has made the schema: migrations only ever add to it."""
    return revision is not None and revision not in known_migrations()


@cache
def newest_migration() -> str | None:
    """Return the revision that an up-to-date database is at."""
    return ScriptDirectory.from_config(migrations_config()).get_current_head()


@cache
def known_migrations() -> frozenset[str]:
    """Return every revision that this code knows."""
    scripts = ScriptDirectory.from_config(migrations_config())
    return frozenset(script.revision for script in scripts.walk_revisions())


def migrations_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
