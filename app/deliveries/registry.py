"""The kinds of receivers, by name. A new one is a file beside this one with a `Sink`, and a line in `SINKS`."""

from typing import Final

from app.deliveries import webhook
from app.deliveries.sink import Sink

WEBHOOK = "webhook"

SINKS: Final[dict[str, Sink]] = {
    WEBHOOK: webhook.send,
}
