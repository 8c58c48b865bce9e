"""Webhooks of the caller's team, and the log of what was sent to them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, status

from app.api.deps import Administrator
from app.api.documentation import refusals
from app.deliveries.service import WebhookService
from modelpress.contract.webhook import Delivery, DeliveryPage, IssuedWebhook, WebhookList, WebhookRequest

router = APIRouter(tags=["webhooks"])


async def get_webhooks(request: Request) -> WebhookService:
    webhooks: WebhookService = request.app.state.webhooks
    return webhooks


Webhooks = Annotated[WebhookService, Depends(get_webhooks)]
WebhookId = Annotated[str, Path(pattern=r"^wh_[0-9a-f]{1,64}$", examples=["wh_5f0c8a2e9b1d4c7f60a3e812"])]
DeliveryId = Annotated[int, Path(ge=1, lt=2**63)]


@router.post(
    "/webhooks",
    status_code=status.HTTP_201_CREATED,
    operation_id="create_webhook",
    responses=refusals(400, 401, 403, 413, 415, 422, 429),
)
def create_webhook(request: WebhookRequest, caller: Administrator, webhooks: Webhooks) -> IssuedWebhook:
    """Have events of the team's jobs posted to an address, signed as in Standard Webhooks.

    The `secret` is shown in this answer and never again.
    """
    return webhooks.create(caller, request)


@router.get("/webhooks", operation_id="list_webhooks", responses=refusals(401, 403))
def list_webhooks(caller: Administrator, webhooks: Webhooks) -> WebhookList:
    """List the webhooks of the team, newest first, without their secrets."""
    return webhooks.list(caller)


@router.delete(
    "/webhooks/{webhook_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    operation_id="delete_webhook",
    responses=refusals(401, 403, 404, 422),
)
def delete_webhook(webhook_id: WebhookId, caller: Administrator, webhooks: Webhooks) -> None:
    """Delete a webhook with its log; what waits for it is not sent any more."""
    webhooks.delete(caller, webhook_id)


@router.post(
    "/webhooks/{webhook_id}/test",
    status_code=status.HTTP_202_ACCEPTED,
    operation_id="try_webhook",
    responses=refusals(401, 403, 404, 422),
)
def try_webhook(webhook_id: WebhookId, caller: Administrator, webhooks: Webhooks) -> Delivery:
    """Send an event `webhook.test`; what became of it stands in the log of the webhook."""
    return webhooks.test(caller, webhook_id)


@router.post("/webhooks/{webhook_id}/rotate", operation_id="rotate_webhook", responses=refusals(401, 403, 404, 422))
def rotate_webhook(webhook_id: WebhookId, caller: Administrator, webhooks: Webhooks) -> IssuedWebhook:
    """Give a webhook another secret, which this answer alone shows. For 24 hours, the old one is used to sign, too."""
    return webhooks.rotate(caller, webhook_id)


@router.get("/webhooks/{webhook_id}/deliveries", operation_id="list_deliveries", responses=refusals(401, 403, 404, 422))
def list_deliveries(
    webhook_id: WebhookId,
    caller: Administrator,
    webhooks: Webhooks,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> DeliveryPage:
    """List what was sent to a webhook within the last 30 days, and what waits to be sent, newest first."""
    return webhooks.log(caller, webhook_id, before, limit)


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}/retry",
    status_code=status.HTTP_202_ACCEPTED,
    operation_id="retry_delivery",
    responses=refusals(401, 403, 404, 422),
)
def retry_delivery(
    webhook_id: WebhookId, delivery_id: DeliveryId, caller: Administrator, webhooks: Webhooks
) -> Delivery:
    """Send a delivery again, whatever became of it, under the same `webhook-id`."""
    return webhooks.send_again(caller, webhook_id, delivery_id)
