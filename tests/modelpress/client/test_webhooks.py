"""Webhooks by way of the clients and the command line, on a real API."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from app.settings import ServerSettings
from modelpress.cli.main import application
from modelpress.client import AsyncClient, Client, ProblemError
from modelpress.contract.webhook import DeliveryState, EventName
from tests.support.server import serving

ADDRESS = "https://ci.example/hook"


@pytest.fixture
def url(settings: ServerSettings, engine: Engine) -> Iterator[str]:
    with serving(settings) as address:
        yield address


def test_the_client_makes_tries_rotates_and_deletes_a_webhook(url: str) -> None:
    with Client(url) as client:
        made = client.create_webhook(ADDRESS, [EventName.FAILED])
        tried = client.test_webhook(made.id)
        rotated = client.rotate_webhook(made.id)
        assert [(each.id, each.events) for each in client.webhooks()] == [(made.id, (EventName.FAILED,))]
        assert [each.id for each in client.deliveries(made.id)] == [tried.id]
        assert client.retry_delivery(made.id, tried.id).state is DeliveryState.PENDING
        assert rotated.id == made.id
        assert rotated.secret.startswith("whsec_")
        assert rotated.secret != made.secret
        client.delete_webhook(made.id)
        assert client.webhooks() == ()
        with pytest.raises(ProblemError) as refusal:
            client.rotate_webhook(made.id)
        assert refusal.value.problem.status == 404


def test_the_asynchronous_client_does_the_same(url: str) -> None:
    async def walk() -> None:
        async with AsyncClient(url) as client:
            made = await client.create_webhook(ADDRESS)
            tried = await client.test_webhook(made.id)
            assert [each.id for each in await client.webhooks()] == [made.id]
            assert [each.id async for each in client.deliveries(made.id)] == [tried.id]
            assert (await client.retry_delivery(made.id, tried.id)).id == tried.id
            assert (await client.rotate_webhook(made.id)).secret != made.secret
            await client.delete_webhook(made.id)
            assert await client.webhooks() == ()

    asyncio.run(walk())


def test_the_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    # What a program that waits for nothing has no use for, or does by `upload`.
    assert methods(Client) - methods(AsyncClient) == {"begin_upload", "is_alive", "readiness"}


def test_the_command_line_makes_lists_tries_and_deletes_a_webhook(url: str) -> None:
    def call(*words: str) -> str:
        done = CliRunner().invoke(application, ["webhooks", *words, "--url", url])
        assert done.exit_code == 0, done.output
        return done.stdout

    made: dict[str, Any] = json.loads(call("create", ADDRESS, "--event", "job.failed", "--json"))
    assert (made["url"], made["events"]) == (ADDRESS, ["job.failed"])
    assert ADDRESS in call("list")
    delivery = json.loads(call("test", made["id"], "--json"))["id"]
    assert "webhook.test" in call("deliveries", made["id"])
    assert json.loads(call("retry", made["id"], str(delivery), "--json"))["id"] == delivery
    assert json.loads(call("rotate", made["id"], "--json"))["secret"] != made["secret"]
    call("delete", made["id"])
    assert call("list", "--json") == ""
