"""What every kind of receiver offers."""

from typing import Protocol

from app.deliveries.store import Outgoing
from app.settings import Settings


class DeliveryFailed(Exception):
    """The receiver has not taken it. The message is shown to the team and names no secret."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        """Say why; `gone` where the receiver wants nothing any more."""
        super().__init__(message)
        self.gone = gone


class Sink(Protocol):
    """A kind of receiver. Sending may be repeated: a receiver tells repetitions by the id of the message."""

    def __call__(self, outgoing: Outgoing, settings: Settings) -> None:
        """Send, within the time that a worker has for it. Raises DeliveryFailed where it was not taken."""
        ...
