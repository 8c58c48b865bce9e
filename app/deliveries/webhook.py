"""Webhooks as in Standard Webhooks: signed, to public addresses, and without following where an answer leads."""

from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpcore2
from standardwebhooks.webhooks import Webhook

from app.deliveries.network import ForbiddenAddress, GuardedNetwork
from app.deliveries.sink import DeliveryFailed
from app.deliveries.store import Outgoing
from app.settings import Settings

EXCHANGE_SECONDS = 15.0
USER_AGENT = "modelpress"


def send(outgoing: Outgoing, settings: Settings) -> None:
    """Post the event to the receiver. Raises DeliveryFailed unless it answers with a status of 2xx."""
    encrypted = urlsplit(outgoing.target).scheme == "https"
    guard = GuardedNetwork(settings.allowed_networks, EXCHANGE_SECONDS, encrypted=encrypted)
    signed, body = headers(outgoing), outgoing.body.encode()
    with httpcore2.ConnectionPool(network_backend=guard) as pool:
        try:
            with pool.stream("POST", outgoing.target, headers=signed, content=body) as answer:
                status = answer.status
        except ForbiddenAddress as error:
            raise DeliveryFailed(str(error)) from error
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise DeliveryFailed(f"the receiver does not answer ({type(error).__name__})") from error
    if status == 410:
        raise DeliveryFailed("the receiver answers 410: it wants nothing any more", gone=True)
    if 300 <= status < 400:
        raise DeliveryFailed(f"the receiver answers {status}; redirects are not followed, so name the final address")
    if not 200 <= status < 300:
        raise DeliveryFailed(f"the receiver answers {status}")


def headers(outgoing: Outgoing) -> dict[str | bytes, str | bytes]:
    """Return the headers of a request, with a signature by each secret."""
    now = datetime.now(UTC)
    if not outgoing.secrets:
        raise DeliveryFailed("the webhook has no secret")
    signers = [Webhook(secret.get_secret_value()) for secret in outgoing.secrets]
    return {
        "Host": urlsplit(outgoing.target).netloc,
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": outgoing.message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(outgoing.message_id, now, outgoing.body) for signer in signers),
    }
