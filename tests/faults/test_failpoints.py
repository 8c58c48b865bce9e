"""A worker that is killed between any two of its steps leaves a job that another one brings to the same end, once."""

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.db import Sessions
from app.jobs import reaper
from app.jobs.service import JobService
from app.serve import environment
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from tests.support.children import WEIGHTS, Put
from tests.support.doorbell import SilentDoorbell
from tests.support.processes import ROOT, processes_of
from tests.support.waiting import PATIENCE_SECONDS, wait_for
from workers.failpoints import Point
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper


def killed_at(point: Point, settings: ServerSettings, children: Path) -> int:
    """Run a worker that kills itself at a point, and return its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.mortal", point, str(children)],
        env=environment(settings) | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        timeout=PATIENCE_SECONDS,
    ).returncode


def let_leases_run_out(sessions: Sessions) -> None:
    """Do what the clock and the sweeper do to jobs of a worker that fell silent."""
    with sessions.begin() as session:
        session.execute(
            text(
                "UPDATE jobs SET lease_until = clock_timestamp() - interval '1 second', run_after = now()"
                " WHERE lease_until IS NOT NULL"
            )
        )
        reaper.reap(session, 0.0)


@pytest.mark.parametrize("point", Point)
def test_a_worker_that_is_killed_is_replaced_and_its_job_ends_once(
    service: JobService, quick: ServerSettings, sessions: Sessions, tiny: dict[str, Any], children: Put, point: Point
) -> None:
    storage = open_storage(quick.artifacts_url)
    job_id = service.submit(Recipe.model_validate(tiny)).id
    assert killed_at(point, quick, children()) == -signal.SIGKILL
    wait_for(lambda: not processes_of(quick.work_dir))
    let_leases_run_out(sessions)
    Supervisor(quick, sessions, storage, "another", threading.Event()).run()
    job = service.get(job_id)
    assert job.state is State.SUCCEEDED
    assert job.attempt == (1 if point is Point.ENDED else 2)
    Sweeper(quick, sessions, SilentDoorbell(), storage, "id").collect_artifacts()
    assert storage.attempts() == [(job_id, job.attempt)]
    read = b"".join(storage.open(job_id, job.attempt, "model.safetensors", 0, len(WEIGHTS)))
    assert read == WEIGHTS.encode()
    assert {artifact.attempt for artifact in service.artifacts(job_id)} == {job.attempt}
