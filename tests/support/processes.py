"""Real processes of the service."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import serve
from app.jobs.service import JobService
from app.jobs.states import ENDED
from app.settings import Settings
from modelpress.contract.job import Job
from tests.support.waiting import PATIENCE_SECONDS, wait_for

ROOT = Path(__file__).parents[2]
RECORDED = (sys.executable, "-m", "tests.support.recorded_cli")
"""The command `modelpress`, whose worker computes with the recorded meter."""


def serve_recorded(patch: pytest.MonkeyPatch) -> None:
    """Let `app.serve` start the command with the recorded meter, which is found beside the service."""
    patch.setattr(serve, "PROGRAM", RECORDED)
    patch.setenv("PYTHONPATH", str(ROOT))


def wait_until_ended(service: JobService, job_id: str) -> Job:
    def ended() -> Job | None:
        job = service.get(job_id)
        return job if job.state in ENDED else None

    return wait_for(ended)


@contextmanager
def worker(settings: Settings, log: Path, children: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, ended by SIGTERM where the test has not ended it otherwise.

    Its children compute with the recorded meter, or run the programs in the directory `children`.
    """
    program = RECORDED if children is None else (sys.executable, "-m", "tests.support.staged_cli", str(children))
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*program, "worker"],
            cwd=ROOT,
            env=serve.environment(settings) | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def processes_of(work_dir: Path) -> list[int]:
    """Ids of the live processes that run inside a job's work directory."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        try:
            if (path / "cwd").readlink().is_relative_to(work_dir):
                found.append(int(path.name))
        except OSError:
            continue
    return found
