"""What can be asked of a service: one function a question, for the clients that wait and those that do not."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Generic
from urllib.parse import quote
from uuid import uuid4

from modelpress.client.transport import Answer, Nothing
from modelpress.contract.estimate import Estimate
from modelpress.contract.event import EventKind, EventPage
from modelpress.contract.job import ArtifactList, Job, JobPage, State
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import Upload, UploadList, UploadRequest
from modelpress.contract.webhook import Delivery, DeliveryPage, EventName, IssuedWebhook, WebhookList
from modelpress.contract.worker import WorkerList


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request, and what its answer is."""

    kind: type[Answer]
    method: str
    path: str
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    json: Any = None
    may_repeat: bool = True
    """Whether it is sent again where no answer came: it changes nothing twice."""


def submit(recipe: Recipe, idempotency_key: str | None) -> Call[Job]:
    """Post a recipe."""
    headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
    return Call(Job, "POST", "/jobs", headers=headers, json=as_sent(recipe))


def estimate(recipe: Recipe) -> Call[Estimate]:
    """Ask what a job would take and make."""
    return Call(Estimate, "POST", "/jobs/estimate", json=as_sent(recipe))


def get(job_id: str, wait_seconds: int, etag: str | None = None) -> Call[Job]:
    """Ask for a job, once it has ended or the time is over; `etag` is that of what the client knows."""
    headers = {"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}
    return Call(Job, "GET", f"/jobs/{job_id}", headers=headers | ({"If-None-Match": etag} if etag else {}))


@dataclass(frozen=True)
class Wanted:
    """Which jobs are to be listed; None is any."""

    state: State | None = None
    model: str | None = None
    method: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def page(wanted: Wanted, after: str | None, limit: int | None) -> Call[JobPage]:
    """Ask for a page of jobs."""
    asked = {
        "after": after,
        "limit": limit,
        "state": wanted.state and wanted.state.value,
        "model": wanted.model,
        "method": wanted.method,
        "metadata": [f"{key}={value}" for key, value in wanted.metadata.items()] or None,
    }
    return Call(JobPage, "GET", "/jobs", params={name: value for name, value in asked.items() if value is not None})


def cancel(job_id: str) -> Call[Job]:
    """Cancel a job."""
    return Call(Job, "POST", f"/jobs/{job_id}/cancel")


def retry(job_id: str) -> Call[Job]:
    """Post a failed or cancelled job again. A second time would make another job."""
    return Call(Job, "POST", f"/jobs/{job_id}/retry", may_repeat=False)


def delete(path: str) -> Call[Nothing]:
    """Delete what has this address."""
    return Call(Nothing, "DELETE", path)


def artifacts(job_id: str) -> Call[ArtifactList]:
    """Ask for the files of a result."""
    return Call(ArtifactList, "GET", f"/jobs/{job_id}/artifacts")


def artifact_path(job_id: str, name: str) -> str:
    """Return the address of a file of a result."""
    return f"/jobs/{job_id}/artifacts/{quote(name)}"


def events(job_id: str, after: int, kind: EventKind | None) -> Call[EventPage]:
    """Ask for a page of what happened to a job."""
    params = {"after": after, "limit": 1000} | ({"kind": kind.value} if kind else {})
    return Call(EventPage, "GET", f"/jobs/{job_id}/events", params=params)


def begin_upload(request: UploadRequest) -> Call[Upload]:
    """Announce a file of text."""
    return Call(Upload, "POST", "/uploads", json=request.model_dump(mode="json"))


def get_upload(upload_id: str) -> Call[Upload]:
    """Ask how much of a file has arrived."""
    return Call(Upload, "GET", f"/uploads/{upload_id}")


def uploads(after: str | None) -> Call[UploadList]:
    """Ask for a page of the team's files."""
    return Call(UploadList, "GET", "/uploads", params={"limit": 100} | ({} if after is None else {"after": after}))


def create_webhook(url: str, events: Collection[EventName] | None) -> Call[IssuedWebhook]:
    """Make a webhook. A second time would make another one."""
    request = {"url": url} | ({} if events is None else {"events": sorted(events)})
    return Call(IssuedWebhook, "POST", "/webhooks", json=request, may_repeat=False)


def webhooks() -> Call[WebhookList]:
    """Ask for the team's webhooks."""
    return Call(WebhookList, "GET", "/webhooks")


def test_webhook(webhook_id: str) -> Call[Delivery]:
    """Have a test event sent to a webhook. A second time would send another one."""
    return Call(Delivery, "POST", f"/webhooks/{webhook_id}/test", may_repeat=False)


def rotate_webhook(webhook_id: str) -> Call[IssuedWebhook]:
    """Give a webhook another secret. A second time would drop the one that the receiver has."""
    return Call(IssuedWebhook, "POST", f"/webhooks/{webhook_id}/rotate", may_repeat=False)


def deliveries(webhook_id: str, before: int | None) -> Call[DeliveryPage]:
    """Ask for a page of what was sent to a webhook."""
    params = {"limit": 100} | ({} if before is None else {"before": before})
    return Call(DeliveryPage, "GET", f"/webhooks/{webhook_id}/deliveries", params=params)


def retry_delivery(webhook_id: str, delivery_id: int) -> Call[Delivery]:
    """Have a delivery sent again."""
    return Call(Delivery, "POST", f"/webhooks/{webhook_id}/deliveries/{delivery_id}/retry")


def workers() -> Call[WorkerList]:
    """Ask for the workers."""
    return Call(WorkerList, "GET", "/workers")


def as_sent(recipe: Recipe) -> dict[str, Any]:
    """Return the body for a recipe: what was given, so that the service's defaults apply to the rest."""
    return recipe.model_dump(mode="json", exclude_unset=True)
