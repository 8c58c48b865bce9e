"""Webhooks of one team, on behalf of one caller. Each method commits before it returns."""

import base64
import json
import secrets
from datetime import UTC, datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.clock import clock
from app.db import Sessions
from app.deliveries import store
from app.deliveries.models import DeliveryRow, SubscriptionRow
from app.deliveries.network import ForbiddenAddress, check_address
from app.deliveries.registry import WEBHOOK
from app.errors import DeliveryNotFound, QuotaExceeded, WebhookNotFound
from app.keys import store as keys
from app.keys.callers import Caller
from app.settings import Settings
from modelpress.contract.webhook import (
    Delivery,
    DeliveryPage,
    DeliveryState,
    EventName,
    IssuedWebhook,
    Webhook,
    WebhookList,
    WebhookRequest,
)
from modelpress.errors import Refused

MOST_WEBHOOKS = 20
SECRET_BYTES = 32


class WebhookService:
    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self.settings = settings
        self.sessions = sessions

    def create(self, caller: Caller, request: WebhookRequest) -> IssuedWebhook:
        """Make a webhook of the caller's team, and return it with its secret, which is shown this once.

        Raises:
            Refused: nothing may be sent to the address. A name is looked up only when something is sent.
            QuotaExceeded: the team has as many webhooks as a team may have.
        """
        check_target(request.url, self.settings)
        secret = new_secret()
        with self.sessions.begin() as session:
            keys.add_team(session, caller.team)
            keys.team(session, caller.team)
            if len(store.of_team(session, caller.team, WEBHOOK)) >= MOST_WEBHOOKS:
                raise QuotaExceeded(f"a team has at most {MOST_WEBHOOKS} webhooks; delete one first")
            row = SubscriptionRow(
                id=f"wh_{secrets.token_hex(12)}",
                team=caller.team,
                sink=WEBHOOK,
                target=request.url,
                events=sorted(request.events),
                secret=secret,
                created_at=session.scalar(select(clock())),
            )
            store.add(session, row)
            keys.record(session, caller, "webhook.created", row.id, url=request.url)
            webhook = as_webhook(row)
        return IssuedWebhook(**dict(webhook), secret=secret)

    def list(self, caller: Caller) -> WebhookList:
        """Return the webhooks of the caller's team."""
        with self.sessions() as session:
            return WebhookList(webhooks=tuple(map(as_webhook, store.of_team(session, caller.team, WEBHOOK))))

    def delete(self, caller: Caller, webhook_id: str) -> None:
        """Delete a webhook with its log. Raises WebhookNotFound where the team has no such webhook."""
        with self.sessions.begin() as session:
            store.remove(session, self.find(session, caller, webhook_id).id)
            keys.record(session, caller, "webhook.deleted", webhook_id)

    def rotate(self, caller: Caller, webhook_id: str) -> IssuedWebhook:
        """Give a webhook another secret, and return it with that. For a day, both are used to sign.

        Raises WebhookNotFound where the team has no such webhook.
        """
        secret = new_secret()
        with self.sessions.begin() as session:
            row = self.find(session, caller, webhook_id)
            store.rotate(session, row.id, secret)
            keys.record(session, caller, "webhook.rotated", webhook_id)
            return IssuedWebhook(**dict(as_webhook(row)), secret=secret)

    def test(self, caller: Caller, webhook_id: str) -> Delivery:
        """Send a test event to a webhook. Raises WebhookNotFound where the team has no such webhook."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = json.dumps({"type": EventName.TEST, "timestamp": now, "data": {"webhook": webhook_id}})
        with self.sessions.begin() as session:
            self.find(session, caller, webhook_id)
            store.enqueue(session, [webhook_id], EventName.TEST, body, None)
            (row,) = store.log(session, webhook_id, None, 1)
            return as_delivery(row)

    def log(self, caller: Caller, webhook_id: str, before: int | None, limit: int) -> DeliveryPage:
        """Return what was sent to a webhook. Raises WebhookNotFound where the team has no such webhook."""
        with self.sessions() as session:
            self.find(session, caller, webhook_id)
            rows = store.log(session, webhook_id, before, limit + 1)
        shown = rows[:limit]
        page = tuple(map(as_delivery, shown))
        return DeliveryPage(deliveries=page, next=shown[-1].id if len(rows) > limit else None)

    def send_again(self, caller: Caller, webhook_id: str, delivery_id: int) -> Delivery:
        """Send a delivery again, under the same id.

        Raises:
            WebhookNotFound: the team has no such webhook.
            DeliveryNotFound: nothing of this id was sent to it.
        """
        with self.sessions.begin() as session:
            self.find(session, caller, webhook_id)
            row = store.send_again(session, webhook_id, delivery_id)
            if row is None:
                raise DeliveryNotFound(f"the webhook has no delivery {delivery_id}")
            keys.record(session, caller, "delivery.retried", str(delivery_id), webhook=webhook_id)
            return as_delivery(row)

    def find(self, session: Session, caller: Caller, webhook_id: str) -> SubscriptionRow:
        """Return a webhook of the caller's team. Raises WebhookNotFound for that of another team, too."""
        row = store.find(session, caller.team, webhook_id)
        if row is None or row.sink != WEBHOOK:
            raise WebhookNotFound(f"the team {caller.team!r} has no webhook {webhook_id!r}")
        return row


def new_secret() -> str:
    """Return a secret as Standard Webhooks writes it."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"


def check_target(url: str, settings: Settings) -> None:
    """Raise Refused for an address that names a place to which nothing may be sent."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not settings.allowed_networks:
        raise Refused("url", "must begin with https://; http is for networks in MODELPRESS_WEBHOOK_NETWORKS alone")
    try:
        address = ip_address(parts.hostname or "")
    except ValueError:
        return
    try:
        check_address(address, settings.allowed_networks, encrypted=parts.scheme == "https")
    except ForbiddenAddress as error:
        raise Refused("url", str(error)) from error


def as_webhook(row: SubscriptionRow) -> Webhook:
    """Return the webhook of a row, without its secret."""
    return Webhook(
        id=row.id,
        url=row.target,
        events=tuple(map(EventName, row.events)),
        created_at=row.created_at,
        disabled_at=row.disabled_at,
    )


def as_delivery(row: DeliveryRow) -> Delivery:
    """Return the delivery of a row."""
    return Delivery(
        id=row.id,
        message_id=row.message_id,
        event=EventName(row.event),
        job=row.job_id,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        created_at=row.created_at,
        next_at=row.next_at if row.state == DeliveryState.PENDING else None,
        delivered_at=row.delivered_at,
        error=row.error,
    )
