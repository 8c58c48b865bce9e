"""The address at which a command reaches the service."""

from typing import Annotated

import typer

from modelpress.client import Client

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str | None, typer.Option("--url", envvar="MODELPRESS_URL", help="Address of the service.", show_default=DEFAULT_URL)
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


def connect(url: str | None) -> Client:
    """Return a client of the service at `url`, or of the one on this machine."""
    return Client(url or DEFAULT_URL, patience_seconds=5.0)


def running_service_address() -> str | None:
    """Return the address of the service that runs on this machine, or None."""
    with Client(DEFAULT_URL) as client:
        return DEFAULT_URL if client.is_alive() else None
