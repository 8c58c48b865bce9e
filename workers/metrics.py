"""What an operator's Prometheus reads of this worker."""

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from modelpress.contract.job import State
from modelpress.errors import ModelpressError

LONG: Final = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)
"""Seconds, as the parts of a job take them."""

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
BUSY = Gauge("modelpress_worker_busy", "Whether this worker computes a job.", registry=REGISTRY)
ATTEMPTS = Histogram(
    "modelpress_attempt_seconds", "Time of an attempt, by its end.", ("outcome",), buckets=LONG, registry=REGISTRY
)
STAGES = Histogram("modelpress_stage_seconds", "Time of a stage.", ("stage",), buckets=LONG, registry=REGISTRY)
LEASES_LOST = Counter("modelpress_leases_lost", "Jobs that were taken from this worker.", registry=REGISTRY)
BEATS_FAILED = Counter("modelpress_heartbeats_failed", "Heartbeats that the database did not take.", registry=REGISTRY)
JOBS_REAPED = Counter(
    "modelpress_jobs_reaped", "Jobs taken from silent workers, by what became of them.", ("state",), registry=REGISTRY
)
for state in (State.QUEUED, State.FAILED, State.CANCELLED):
    JOBS_REAPED.labels(state)  # a sum over series of which one is missing is no number
RUNG_AGAIN = Counter("modelpress_jobs_rung_again", "Jobs whose bell nobody had heard.", registry=REGISTRY)
REPAIRS_FAILED = Counter("modelpress_repairs_failed", "Repairs that failed.", ("repair",), registry=REGISTRY)
SET_ASIDE = Counter("modelpress_unknown_set_aside", "Attempts of unknown jobs moved to quarantine.", registry=REGISTRY)
PUBLISHED_BYTES = Counter("modelpress_published_bytes", "Bytes of results stored by this worker.", registry=REGISTRY)


class MetricsFailed(ModelpressError):
    """The worker cannot listen on MODELPRESS_METRICS_PORT."""

    code = "metrics_failed"
    title = "The metrics cannot be served"


class StageClock:
    """Measures each stage from its beginning to that of the next one."""

    def __init__(self) -> None:
        self.stage: str | None = None
        self.entered = 0.0

    def enter(self, stage: str) -> None:
        """Note that a stage begins, and the one before has ended."""
        self.leave()
        self.stage, self.entered = stage, time.monotonic()

    def leave(self) -> None:
        """Note that the stage has ended, if one was begun."""
        if self.stage is not None:
            STAGES.labels(self.stage).observe(time.monotonic() - self.entered)
        self.stage = None


def serve(host: str, port: int) -> None:
    """Serve the metrics from a thread until the process ends. Raises MetricsFailed where the port cannot be had."""
    try:
        start_http_server(port, host, REGISTRY)
    except OSError as error:
        raise MetricsFailed(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Set MODELPRESS_METRICS_PORT to another port."
        ) from error
