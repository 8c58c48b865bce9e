"""A worker that dies between any two of its steps leaves a job that another one brings to the same end, once."""

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.db import Sessions
from app.jobs import reaper
from app.jobs.service import JobService
from app.settings import Settings
from app.storage.registry import open_storage
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from tests.support.doorbell import SilentDoorbell
from tests.support.results import COMPARISON
from workers import child, failpoints
from workers.failpoints import Point
from workers.messages import DoneReport
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper

DONE = DoneReport(package=Path("/package"), achieved_ratio=1.3, metrics=COMPARISON)
PROGRAMS = {
    "fetch": "print(json.dumps({'event': 'done', 'model_path': '/model', 'texts': {}, 'text_revisions': {}}))",
    "runner": f"""
os.makedirs("package", exist_ok=True)
open("package/model.safetensors", "w").write("weights")
print({DONE.model_dump_json()!r}.replace("/package", os.getcwd() + "/package"))
""",
}


class Died(BaseException):
    """Ends a worker as a kill does: no handler of an exception sees it."""


@pytest.fixture(autouse=True)
def quick_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "path" / "workers"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for module, body in PROGRAMS.items():
        (package / f"{module}.py").write_text(f"import json, os\n{body}\n")
    monkeypatch.setattr(child, "ROOT", package.parent)


def die_at(point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(reached: Point) -> None:
        if reached is point:
            monkeypatch.setattr(failpoints, "hook", failpoints.nothing)
            raise Died

    monkeypatch.setattr(failpoints, "hook", hook)


@pytest.mark.parametrize("point", Point)
def test_a_worker_that_dies_is_replaced_and_its_job_ends_once(
    service: JobService,
    settings: Settings,
    sessions: Sessions,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    point: Point,
) -> None:
    storage = open_storage(settings.artifacts_url)
    supervisor = Supervisor(settings, sessions, storage, "worker", threading.Event())
    job_id = service.submit(Recipe.model_validate(tiny)).id
    die_at(point, monkeypatch)
    with pytest.raises(Died):
        supervisor.run()
    with sessions.begin() as session:
        session.execute(
            text(
                "UPDATE jobs SET lease_until = clock_timestamp() - interval '1 second', run_after = now()"
                " WHERE lease_until IS NOT NULL"
            )
        )
        reaper.reap(session, 0.0)
    supervisor.run()
    job = service.get(job_id)
    assert job.state is State.SUCCEEDED
    assert job.attempt == (1 if point is Point.ENDED else 2)
    Sweeper(settings, sessions, SilentDoorbell(), storage, "id").collect_artifacts()
    assert storage.attempts() == [(job_id, job.attempt)]
    assert storage.exists(job_id, job.attempt, "model.safetensors")
    assert {artifact.attempt for artifact in service.artifacts(job_id)} == {job.attempt}
