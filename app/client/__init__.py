"""The Python client of the service: `Client`, `AsyncClient`, and the errors that they raise."""

from app.client.async_client import AsyncClient
from app.client.calls import Wanted
from app.client.client import Client
from app.client.errors import ClientError, DigestMismatch, ProblemError, ServiceUnreachable, UnexpectedAnswer

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "DigestMismatch",
    "ProblemError",
    "ServiceUnreachable",
    "UnexpectedAnswer",
    "Wanted",
]
