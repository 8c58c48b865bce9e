"""What can be imported anywhere: the clients of the service, and the contract in whose terms they speak."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelpress.client import (
        AsyncClient,
        Client,
        ClientError,
        DigestMismatch,
        ProblemError,
        ServiceUnreachable,
        UnexpectedAnswer,
        Wanted,
    )
    from modelpress.contract.job import Job, State
    from modelpress.contract.recipe import Recipe

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "DigestMismatch",
    "Job",
    "ProblemError",
    "Recipe",
    "ServiceUnreachable",
    "State",
    "UnexpectedAnswer",
    "Wanted",
]

_CONTRACT = {"Job": "job", "State": "job", "Recipe": "recipe"}


def __getattr__(name: str) -> Any:
    """Return a name of `__all__`, imported when it is asked for: what only computes needs no HTTP client."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"modelpress.contract.{_CONTRACT[name]}" if name in _CONTRACT else "modelpress.client"
    return getattr(import_module(home), name)
