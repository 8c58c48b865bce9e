"""Single statements in the event loop: they outlive a server that starts again, and wait for none that hangs."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, Text, bindparam, select, text

from app.errors import DatabaseUnavailable
from app.quick import QuickReader, prepared
from app.settings import ServerSettings
from tests.support.ports import free_port
from tests.support.proxy import database_address, database_behind, proxy

ECHO = prepared(select(bindparam("said", type_=Text)))


def read(url: SecretStr, asked: Callable[[QuickReader], Awaitable[None]], patience_seconds: float = 30.0) -> None:
    """Let something be asked of a reader, which is closed afterwards."""

    async def run() -> None:
        reader = QuickReader(url, patience_seconds=patience_seconds)
        try:
            await asked(reader)
        finally:
            await reader.close()

    asyncio.run(run())


def test_many_ask_at_once_over_a_few_connections(servers: ServerSettings) -> None:
    async def ask(reader: QuickReader) -> None:
        rows = await asyncio.gather(*(reader.one(ECHO, said=str(number)) for number in range(50)))
        assert [row[0] for row in rows] == [str(number) for number in range(50)]
        assert 1 <= len(reader.idle) <= 10

    read(servers.database_url, ask)


def test_connections_that_the_server_has_closed_are_made_anew(servers: ServerSettings, engine: Engine) -> None:
    async def ask(reader: QuickReader) -> None:
        await asyncio.gather(*(reader.one(ECHO, said="first") for _ in range(5)))
        processes = [connection.info.backend_pid for connection in reader.idle]
        with engine.connect() as connection:
            for process in processes:
                connection.execute(text("SELECT pg_terminate_backend(:process, 5000)"), {"process": process})
        assert (await reader.one(ECHO, said="second"))[0] == "second"

    read(servers.database_url, ask)


def test_a_server_that_is_not_there_is_told() -> None:
    async def ask(reader: QuickReader) -> None:
        with pytest.raises(DatabaseUnavailable):
            await reader.one(ECHO, said="anything")

    read(SecretStr(f"postgresql://127.0.0.1:{free_port()}/nothing"), ask)


def test_a_server_that_hangs_is_waited_for_no_longer_than_that(servers: ServerSettings) -> None:
    with proxy(database_address(servers)) as between:

        async def ask(reader: QuickReader) -> None:
            assert (await reader.one(ECHO, said="first"))[0] == "first"
            between.fall_silent()
            with pytest.raises(DatabaseUnavailable):
                await reader.one(ECHO, said="second")

        read(database_behind(servers, between).database_url, ask, patience_seconds=1.0)
