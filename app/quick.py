"""Single statements in the event loop, for what is asked most: no thread, no session, no transaction around each."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from pydantic import SecretStr
from sqlalchemy import Select, make_url

from app.db import CONNECT_SECONDS, KEEPALIVE
from app.errors import DatabaseUnavailable

DIALECT = make_url("postgresql+psycopg://").get_dialect()()
MOST_CONNECTIONS = 10
UNAVAILABLE = "the database does not answer; try again in a moment"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A statement as PostgreSQL takes it, with the values that never change."""

    sql: str
    constants: Mapping[str, Any]


def prepared(query: Select[Any]) -> Prepared:
    """Return a query as PostgreSQL takes it; its named parameters are given at each call."""
    compiled = query.compile(dialect=DIALECT)
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    return Prepared(str(compiled), constants)


class QuickReader:
    """A few connections that read, each for one statement at a time."""

    def __init__(self, database_url: SecretStr, *, patience_seconds: float) -> None:
        """Connect when something is first asked; wait for no answer longer than this."""
        url = make_url(database_url.get_secret_value()).set(drivername="postgresql")
        self.address = url.render_as_string(hide_password=False)
        self.patience_seconds = patience_seconds
        self.places = asyncio.Semaphore(MOST_CONNECTIONS)
        self.idle: list[psycopg.AsyncConnection[Any]] = []

    async def one(self, statement: Prepared, **parameters: Any) -> Any:
        """Return the one row that a statement finds, or None. Raises DatabaseUnavailable."""
        try:
            async with asyncio.timeout(self.patience_seconds), self.places:
                if self.idle:
                    try:
                        return await self.ask(self.idle.pop(), statement, parameters)
                    except psycopg.OperationalError:
                        await self.close()  # a connection that waited may lead nowhere, and so may all others
                return await self.ask(await self.connect(), statement, parameters)
        except (psycopg.Error, OSError, TimeoutError) as error:
            log.error("database_unavailable", exc_info=error)
            raise DatabaseUnavailable(UNAVAILABLE) from error

    async def ask(
        self, connection: psycopg.AsyncConnection[Any], statement: Prepared, parameters: Mapping[str, Any]
    ) -> Any:
        """Return what a statement finds, and keep the connection if that went well."""
        try:
            cursor = await connection.execute(statement.sql, {**statement.constants, **parameters}, prepare=True)
            row = await cursor.fetchone()
        except BaseException:  # cancellation included: nobody knows what the connection would answer next
            await connection.close()
            raise
        self.idle.append(connection)
        return row

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """Return a new connection."""
        options: dict[str, Any] = {"connect_timeout": round(CONNECT_SECONDS), **KEEPALIVE}
        return await psycopg.AsyncConnection.connect(self.address, autocommit=True, **options)

    async def close(self) -> None:
        """Close the connections that wait."""
        while self.idle:
            await self.idle.pop().close()
