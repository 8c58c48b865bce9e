"""Webhooks of a team, and the log of what was sent to them."""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from modelpress.contract.job import Answer

LONGEST_URL = 2000
HOST = re.compile(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+")


class EventName(StrEnum):
    """The events that a webhook can subscribe to."""

    QUEUED = "job.queued"
    """A job was posted, or waits again after an attempt was lost."""
    RUNNING = "job.running"
    CANCELLING = "job.cancelling"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    TEST = "webhook.test"
    """Somebody has asked for it at POST /webhooks/ID/test; it is sent whatever `events` says."""


ENDS = frozenset({EventName.SUCCEEDED, EventName.FAILED, EventName.CANCELLED})


def check_url(url: str) -> str:
    """Return the address of a receiver. Raises ValueError for what cannot be one."""
    wrong = "send an address such as https://host/path, with a plain host name, and without user, password or fragment"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        raise ValueError(wrong) from None
    plain = url.isascii() and url.isprintable() and " " not in url and "@" not in parts.netloc and not parts.fragment
    if parts.scheme not in ("http", "https") or not plain or not HOST.fullmatch(parts.hostname or ""):
        raise ValueError(wrong)
    return url


class WebhookRequest(BaseModel):
    """The body of `POST /webhooks`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(max_length=LONGEST_URL), AfterValidator(check_url)] = Field(
        description="where events are posted to: https, and an address of the public Internet unless the operator "
        "allows others",
        examples=["https://ci.example.com/modelpress"],
    )
    events: frozenset[EventName] = Field(ENDS, min_length=1, description="the events that are sent")


class Webhook(Answer):
    """A receiver of the team's events."""

    id: str
    url: str
    events: tuple[EventName, ...]
    created_at: datetime
    disabled_at: datetime | None = Field(None, description="when the receiver answered 410: nothing is sent any more")


class IssuedWebhook(Webhook):
    """A webhook that was just made."""

    secret: str = Field(description="verify signatures with it (Standard Webhooks); it is shown now and never again")


class WebhookList(Answer):
    """All webhooks of the team, newest first."""

    webhooks: tuple[Webhook, ...]


class DeliveryState(StrEnum):
    """How far an event has come on its way to a receiver."""

    PENDING = "pending"
    """It is sent, and sent again until the receiver has taken it."""
    DELIVERED = "delivered"
    DEAD = "dead"
    """Every attempt has failed, or the webhook is disabled; POST …/retry sends it again."""


class Delivery(Answer):
    """An event on its way to one receiver."""

    id: int
    message_id: str = Field(description="the header `webhook-id`, the same at each attempt")
    event: EventName
    job: str | None = None
    state: DeliveryState
    attempts: int = Field(description="how often it was sent")
    created_at: datetime
    next_at: datetime | None = Field(None, description="when it is sent again; null where it is not")
    delivered_at: datetime | None = None
    error: str | None = Field(None, description="why the newest attempt has failed")


class DeliveryPage(Answer):
    """One page of the log of a webhook, newest first."""

    deliveries: tuple[Delivery, ...]
    next: int | None = Field(None, description="send as ?before= for the next page; null on the last one")
