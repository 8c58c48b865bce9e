"""Further databases in the PostgreSQL of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import make_url, text

from app.db import make_engine
from app.settings import ServerSettings


@contextmanager
def fresh_database(servers: ServerSettings, name: str) -> Iterator[str]:
    """Yield the URL of an empty database, which is dropped again."""
    engine = make_engine(servers.database_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            url = make_url(servers.database_url.get_secret_value()).set(database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
