"""The Python client of the service: `Client`, and the errors that it raises."""

from app.client.client import Client
from app.client.errors import ClientError, DigestMismatch, ProblemError, ServiceUnreachable, UnexpectedAnswer

__all__ = ["Client", "ClientError", "DigestMismatch", "ProblemError", "ServiceUnreachable", "UnexpectedAnswer"]
