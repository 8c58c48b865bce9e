"""The Python client of the service: `Client`, `AsyncClient`, and the errors that they raise."""

from modelpress.client.async_client import AsyncClient
from modelpress.client.calls import Wanted
from modelpress.client.client import Client
from modelpress.client.errors import ClientError, DigestMismatch, ProblemError, ServiceUnreachable, UnexpectedAnswer

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
