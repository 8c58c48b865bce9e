"""What an operator's Prometheus reads: requests of this process, and jobs, queues and workers of the whole service."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Request, Response
from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope as Asked

from app.api.deps import caller_with
from app.api.documentation import Responses, refusals
from app.api.probes import Probes
from app.api.problems import METHODS
from app.db import Sessions
from app.jobs.census import Census, Settled, census, settled
from modelpress.contract.access import Scope

NO_ROUTE = "none"
"""Stands for a request that led nowhere: its path is the client's choice, and must not become a label."""
NO_METHOD = "other"
"""Stands for a method that no address knows, which is the client's choice as well."""

SETTLED_SECONDS = 60.0
"""How old the counts of what is over may be: jobs that have ended, stored bytes, deliveries."""

TEXT: Final[Responses] = {200: {"content": {"text/plain": {}}, "description": "The figures"}}

log = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class Metrics:
    """The metrics of one API."""

    def __init__(self, sessions: Sessions, probes: Probes) -> None:
        self.registry = CollectorRegistry()
        for collect in (ProcessCollector, PlatformCollector, GCCollector):
            collect(registry=self.registry)
        self.requests = Histogram(
            "modelpress_request_seconds",
            "Time until a request was answered to its end, downloads and streams included.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.registry.register(ServiceCollector(sessions, probes))

    def observe(self, scope: Asked, status: int, started: float) -> None:
        """Count a request that began at `started`."""
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        method = scope["method"] if scope["method"] in METHODS else NO_METHOD
        self.requests.labels(method, route, str(status)).observe(monotonic() - started)


class ServiceCollector(Collector):
    """Asks the database whenever it is read, unless it is known not to answer."""

    def __init__(self, sessions: Sessions, probes: Probes) -> None:
        self.sessions = sessions
        self.probes = probes
        self.known: Settled | None = None
        self.known_at = 0.0

    def census(self) -> Census:
        """Count what is under way, and every SETTLED_SECONDS what is over."""
        with self.sessions() as session:
            if self.known is None or monotonic() - self.known_at > SETTLED_SECONDS:
                self.known, self.known_at = settled(session), monotonic()
            return census(session, self.known)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that nothing is asked when the collector is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield what is known at this moment."""
        up = GaugeMetricFamily("modelpress_server_up", "Whether a server that is needed answers.", labels=["server"])
        for probe in (self.probes.database, self.probes.broker):
            up.add_metric([probe.name], float(probe.fault is None))
        yield up
        if self.probes.database.fault is not None:
            return
        try:
            counted = self.census()
        except SQLAlchemyError as error:
            log.warning("not_counted", extra={"reason": type(error).__name__})
            return
        yield from families(counted)


def families(counted: Census) -> Iterator[Metric]:
    """Yield what was counted as metrics."""
    queues = counted.queues
    yield gauge("modelpress_jobs", "Jobs by state.", "state", counted.jobs)
    yield gauge("modelpress_failed_jobs", "Failed jobs by the code of their failure.", "code", counted.failed)
    due = {device: queue.jobs for device, queue in queues.items()}
    yield gauge("modelpress_queue_jobs", "Jobs that are due and wait for a worker.", "device", due)
    ages = {device: queue.oldest_seconds for device, queue in queues.items()}
    yield gauge("modelpress_queue_oldest_seconds", "How long the oldest of them has waited.", "device", ages)
    serving = {device: queue.workers for device, queue in queues.items()}
    yield gauge("modelpress_queue_workers", "Workers that take jobs of this queue.", "device", serving)
    yield gauge("modelpress_workers", "Workers by state.", "state", counted.workers)
    told = GaugeMetricFamily(
        "modelpress_deliveries", "Events for others, of the last 30 days.", labels=["sink", "state"]
    )
    for labels, count in counted.deliveries.items():
        told.add_metric(labels, count)
    yield told
    yield GaugeMetricFamily(
        "modelpress_delivery_oldest_seconds",
        "How long the oldest event has waited that its receiver has not taken.",
        counted.oldest_delivery_seconds,
    )
    yield GaugeMetricFamily("modelpress_stored_bytes", "Bytes of all finished files.", counted.stored_bytes)


def gauge(name: str, documentation: str, label: str, values: Mapping[Any, float]) -> Metric:
    """Return a gauge with one label."""
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


@router.get(
    "/metrics",
    operation_id="read_metrics",
    dependencies=[Depends(caller_with(Scope.METRICS))],
    response_class=Response,
    responses=TEXT | refusals(401, 403),
)
def read_metrics(request: Request, accept: Annotated[str, Header(max_length=1000)] = "") -> Response:
    """Say how the service does, over all teams, in the text format of Prometheus."""
    metrics: Metrics = request.app.state.metrics
    encode, content_type = choose_encoder(accept)
    return Response(encode(metrics.registry), media_type=content_type)
