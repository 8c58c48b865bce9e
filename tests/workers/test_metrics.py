"""What a worker tells Prometheus."""

import urllib.request
from typing import Any

import pytest

from app.db import Sessions
from app.jobs import reaper, store
from app.jobs.service import JobService
from app.jobs.store import Progress
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.contract.job import AttemptOutcome, State
from modelpress.contract.recipe import Recipe
from tests.support.doorbell import SilentDoorbell
from tests.support.ports import free_port
from tests.support.waiting import wait_for
from workers import metrics
from workers.lease import Lease
from workers.sweeper import Sweeper


def figure(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_times_each_stage_until_the_next_one_begins(
    service: JobService, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job = service.submit(Recipe.model_validate(tiny))
    before = figure("modelpress_stage_seconds_count", stage="inspect")
    with sessions.begin() as session:
        claim = store.claim(session, job.id, "worker", 60.0)
    assert claim is not None
    with Lease(sessions, claim, 60.0) as lease:
        lease.report(Progress("inspect", 0.1))
        lease.report(Progress("inspect", 0.2))
        assert figure("modelpress_stage_seconds_count", stage="inspect") == before
        lease.report(Progress("plan", 0.3))
        assert figure("modelpress_stage_seconds_count", stage="inspect") == before + 1
    assert figure("modelpress_stage_seconds_count", stage="plan") >= 1


def test_counts_leases_that_were_lost(service: JobService, sessions: Sessions, tiny: dict[str, Any]) -> None:
    job = service.submit(Recipe.model_validate(tiny))
    before = figure("modelpress_leases_lost_total")
    with sessions.begin() as session:
        claim = store.claim(session, job.id, "worker", -1.0)
    assert claim is not None
    with sessions.begin() as session:
        reaper.reap(session, 0.0)
    with Lease(sessions, claim, 4.0) as lease:
        wait_for(lambda: lease.lost)
    assert figure("modelpress_leases_lost_total") == before + 1


def test_counts_jobs_that_were_taken_from_silent_workers(
    service: JobService, sessions: Sessions, settings: ServerSettings, tiny: dict[str, Any]
) -> None:
    job = service.submit(Recipe.model_validate(tiny))
    before = figure("modelpress_jobs_reaped_total", state=State.QUEUED)
    with sessions.begin() as session:
        store.claim(session, job.id, "worker", -1.0)
    Sweeper(settings, sessions, SilentDoorbell(), open_storage(settings.artifacts_url), "identity").reap()
    assert figure("modelpress_jobs_reaped_total", state=State.QUEUED) == before + 1


def test_serves_its_figures_on_a_port_of_its_own() -> None:
    port = free_port()
    metrics.ATTEMPTS.labels(AttemptOutcome.SUCCEEDED).observe(2.0)
    metrics.serve("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert 'modelpress_attempt_seconds_count{outcome="succeeded"}' in answer.read().decode()


def test_a_port_that_is_taken_is_an_error_that_names_the_setting() -> None:
    port = free_port()
    metrics.serve("127.0.0.1", port)
    with pytest.raises(metrics.MetricsFailed, match="MODELPRESS_METRICS_PORT"):
        metrics.serve("127.0.0.1", port)
