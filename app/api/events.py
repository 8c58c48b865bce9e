"""What happens to a job: as pages, and as a stream of server-sent events."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.deps import JobId, Reading, Watching
from app.api.documentation import refusals
from app.jobs.service import JobService
from modelpress.contract.event import EventKind, EventPage

PAGE = 500
LARGEST = 2**63 - 1

router = APIRouter(tags=["events"])

After = Annotated[int, Query(ge=0, le=LARGEST, description="id of the last event that is known")]
Kind = Annotated[EventKind | None, Query(description="only events of this kind")]
LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,18}$", description="id of the last event that has arrived"),
]


@router.get("/jobs/{job_id}/events", operation_id="list_events", responses=refusals(401, 403, 404, 422))
def list_events(
    job_id: JobId,
    service: Reading,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    kind: Kind = None,
) -> EventPage:
    """List what happened to a job, oldest first. With `kind=metric`, the loss curve of a job while it runs."""
    return service.events(job_id, after, limit, kind)


async def known_job(job_id: JobId, service: Reading) -> str:
    """Return the id of a job of the caller's team. Raises JobNotFound before the stream begins."""
    await to_thread.run_sync(service.events, job_id, LARGEST, 1)
    return job_id


@router.get(
    "/jobs/{job_id}/events/stream",
    operation_id="stream_events",
    response_class=EventSourceResponse,
    responses=refusals(401, 403, 404, 422),
)
async def stream_events(
    job_id: Annotated[str, Depends(known_job)],
    service: Reading,
    watch: Watching,
    after: After = 0,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send what happened to a job and what happens, until it ends. A client that was cut off sends `Last-Event-ID`."""
    last = after if last_event_id is None else int(last_event_id)
    with watch.on(job_id) as news:
        while True:
            news.clear()
            # Asked first: what is written at the end of a job is there once its state says that it has ended.
            state = await to_thread.run_sync(service.state, job_id)
            page = await to_thread.run_sync(partial(page_behind, service, job_id, last))
            for event in page.events:
                last = event.id
                yield ServerSentEvent(id=str(event.id), event=event.kind, data=event)
                if event.is_last:
                    return
            if not page.events:
                if state.has_ended:
                    return
                await news.wait()


def page_behind(service: JobService, job_id: str, last: int) -> EventPage:
    """Return the next events of the job."""
    return service.events(job_id, last, PAGE)
