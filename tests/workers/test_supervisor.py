"""What the supervisor makes of children that do not do what they should. Each is a real process."""

import threading
from pathlib import Path
from typing import Any

import pytest

from app.contract.job import State
from app.contract.recipe import Recipe
from app.db import Sessions
from app.jobs.service import JobService
from app.settings import Settings
from app.storage.local import ArtifactStore
from workers import child
from workers.supervisor import Supervisor

FETCHED = "print(json.dumps({'event': 'done', 'model_path': '/model', 'texts': {}, 'text_revisions': {}}))"
CHILDREN = {
    "hangs": "time.sleep(600)",
    "is_killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "sys.stderr.write('a last word\\n'); sys.exit(7)",
    "says_nothing": "pass",
    "fails": (
        "print(json.dumps({'event': 'error', 'code': 'bad_model', 'message': 'no', 'retryable': False})); sys.exit(1)"
    ),
}


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program in the place of the computing child."""

    def put(name: str) -> None:
        package = tmp_path / "path" / "workers"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        for module, body in (("fetch", FETCHED), ("runner", CHILDREN[name])):
            (package / f"{module}.py").write_text(f"import json, os, signal, sys, time\n{body}\n")
        monkeypatch.setattr(child, "ROOT", package.parent)

    return put


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("hangs", "timed_out"),
        ("is_killed", "compute_killed"),
        ("crashes", "compute_crashed"),
        ("says_nothing", "internal_error"),
        ("fails", "bad_model"),
    ],
)
def test_a_child_that_ends_badly_fails_the_last_attempt_with_a_code(
    service: JobService,
    settings: Settings,
    sessions: Sessions,
    tiny: dict[str, Any],
    children: Any,
    name: str,
    code: str,
) -> None:
    settings = settings.model_copy(update={"max_attempts": 1, "job_timeout_seconds": 3.0, "stop_grace_seconds": 0.0})
    service.settings = settings
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children(name)
    artifacts = ArtifactStore(settings.artifacts_dir)
    Supervisor(settings, sessions, artifacts, "worker", threading.Event()).run(job_id)
    job = service.get(job_id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == code


def test_a_passing_fault_puts_the_job_back_while_attempts_are_left(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("is_killed")
    artifacts = ArtifactStore(settings.artifacts_dir)
    Supervisor(settings, sessions, artifacts, "worker", threading.Event()).run(job_id)
    assert service.get(job_id).state is State.QUEUED
