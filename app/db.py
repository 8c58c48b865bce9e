"""The database: engine, session factory, migrations."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_MILLISECONDS = 30_000
IDLE_IN_TRANSACTION_MILLISECONDS = 15_000
"""A process that is frozen inside a transaction must not hold its locks for longer."""

KEEPALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""What makes a connection that leads nowhere fail within seconds, for libpq."""

Sessions = sessionmaker[Session]


def make_engine(database_url: SecretStr, *, pool_size: int = 10) -> Engine:
    """An engine on psycopg 3 that notices dead connections and never waits for ever on a statement."""
    url = make_url(database_url.get_secret_value()).set(drivername="postgresql+psycopg")
    return create_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MILLISECONDS} "
            f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MILLISECONDS}",
            **KEEPALIVE,
        },
    )


def make_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


def upgrade(engine: Engine) -> None:
    """Bring the schema to the newest migration; of several processes that try, one does it and the others wait."""
    with engine.begin() as connection:
        config = migrations_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def at_head(engine: Engine) -> bool:
    """Whether every migration that this code knows has been applied."""
    head = ScriptDirectory.from_config(migrations_config()).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


def migrations_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
