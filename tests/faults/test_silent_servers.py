"""Servers that hang or answer with errors cost a worker time, and never a job or its life."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.embedded.valkey import valkey
from app.jobs.doorbell import Doorbell
from app.jobs.service import JobService
from app.settings import ServerSettings
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from tests.support.children import HANGS, TOLD, WAITS, Put, begun
from tests.support.processes import wait_until_ended, worker
from tests.support.proxy import broker_address, broker_behind, database_address, database_behind, proxy
from tests.support.waiting import PATIENCE_SECONDS, wait_for


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


def test_a_job_is_found_and_computed_while_the_broker_hangs(
    service: JobService, settings: ServerSettings, tiny: dict[str, Any], log: Path, children: Put
) -> None:
    with proxy(broker_address(settings)) as between:
        between.fall_silent(new_too=True)
        with worker(broker_behind(settings, between), log, children()) as process:
            job = wait_until_ended(service, service.submit(Recipe.model_validate(tiny)).id)
            assert job.state is State.SUCCEEDED, job.error
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0


def test_a_worker_whose_connections_to_the_database_lead_nowhere_makes_new_ones(
    service: JobService, settings: ServerSettings, tiny: dict[str, Any], log: Path, children: Put
) -> None:
    with (
        proxy(database_address(settings)) as between,
        worker(database_behind(settings, between), log, children(WAITS)) as process,
    ):
        job_id = service.submit(Recipe.model_validate(tiny)).id
        running = begun(settings.work_dir, job_id)
        between.fall_silent()
        (running / TOLD).touch()
        job = wait_until_ended(service, job_id)
        assert job.state is State.SUCCEEDED, job.error
        assert process.poll() is None


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker that a test may spoil."""
    with valkey(tmp_path_factory.mktemp("broker")) as url:
        yield url.get_secret_value()


def test_a_broker_that_answers_with_errors_ends_no_worker(
    service: JobService, settings: ServerSettings, tiny: dict[str, Any], log: Path, broker: str, children: Put
) -> None:
    settings = ServerSettings(**settings.model_dump() | {"redis_url": broker, "ring_again_seconds": 3600.0})
    service.settings = settings
    client = Redis.from_url(broker.replace("redis+socket://:", "unix://:"))
    doorbell = Doorbell(settings)
    with worker(settings, log, children(HANGS)) as process, client:
        wait_for(lambda: any(each["cmd"] == "brpop" for each in client.client_list()))
        client.replicaof("127.0.0.1", "1")
        doorbell.ring("job_nobody")
        wait_for(lambda: b"read only replica" in log.read_bytes() or process.poll() is not None)
        client.replicaof("NO", "ONE")
        job_id = service.submit(Recipe.model_validate(tiny)).id
        wait_for(lambda: doorbell.ring(job_id) or process.poll() is not None)
        wait_for(lambda: service.get(job_id).state is State.RUNNING or process.poll() is not None)
        assert process.poll() is None
