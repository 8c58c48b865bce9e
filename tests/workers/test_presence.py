"""A worker in the list of workers, and its end when an operator asks for it."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.db import Sessions
from app.jobs import roster
from app.jobs.roster import Introduction
from app.jobs.service import JobService
from app.settings import ServerSettings
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from tests.support.supervising import supervisor_of
from workers import celery_app, child, gpu, labels
from workers.celery_app import own_name
from workers.gpu import Gpu
from workers.presence import Presence

LONG = 60.0
WORKER = Introduction("host:1", "0.1", "cpu", ("cpu",))


class Ended(Exception):
    """The process would have ended here."""


def end() -> None:
    raise Ended


def drain(sessions: Sessions) -> None:
    with sessions.begin() as session:
        assert roster.drain(session, WORKER.id)


def test_a_draining_worker_ends_once_it_computes_nothing(sessions: Sessions) -> None:
    turn, draining = threading.Lock(), threading.Event()
    presence = Presence(sessions, WORKER, draining, turn, end)
    presence.beat()
    drain(sessions)
    with turn:
        presence.beat()
    assert draining.is_set()
    with pytest.raises(Ended):
        presence.beat()


def test_a_draining_worker_claims_nothing(
    service: JobService, settings: ServerSettings, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job = service.submit(Recipe.model_validate(tiny))
    supervisor = supervisor_of(settings, sessions)
    supervisor.draining.set()

    assert supervisor.run() is None
    assert service.get(job.id).state is State.QUEUED


def test_workers_of_one_host_and_number_have_different_names() -> None:
    assert own_name() != own_name()


def test_a_worker_that_ends_leaves_the_list(engine: Engine, sessions: Sessions, service: JobService) -> None:
    stopping = threading.Event()
    presence = Presence(sessions, WORKER, threading.Event(), threading.Lock(), end)
    presence.beat()
    assert [worker.id for worker in service.workers().workers] == [WORKER.id]
    stopping.set()
    presence.run(stopping)
    assert service.workers().workers == ()


def test_a_worker_tells_its_gpu_and_memory_once_it_has_seen_it(
    sessions: Sessions, service: JobService, settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_app, "look", lambda _: Gpu("NVIDIA H200 MIG 1g.18gb", 2**34))
    on_a_gpu = settings.model_copy(update={"device": "cuda"})
    looking = partial(celery_app.with_gpu, on_a_gpu)
    presence = Presence(sessions, WORKER, threading.Event(), threading.Lock(), end, looking)
    presence.beat()
    before = service.workers().workers[0]
    presence.see()
    presence.beat()
    after = service.workers().workers[0]
    assert (before.gpu, before.gpu_memory_bytes) == (None, None)
    assert (after.gpu, after.gpu_memory_bytes) == ("NVIDIA H200 MIG 1g.18gb", 2**34)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_worker_without_a_gpu_that_torch_sees_tells_none(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(celery_app, "look", lambda device: {"cuda": None}[device])
    assert celery_app.with_gpu(settings.model_copy(update={"device": device}), WORKER) == WORKER


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ('print(\'{"name": "%s", "memory_bytes": 16}\' % input())', Gpu("cuda:1", 16)),
        ("print('{\"name\": 1}')", None),
        ("print('no json')", None),
        ("raise SystemExit(1)", None),
        ("import time; time.sleep(60)", None),
    ],
)
def test_what_torch_says_of_a_gpu_is_believed_only_if_it_is_whole(
    program: str, found: Gpu | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "program_gpu.py").write_text(program)
    monkeypatch.setattr(child, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "ASKED", "program_gpu")
    monkeypatch.setattr(gpu, "PATIENCE_SECONDS", 0.5 if "sleep" in program else LONG)
    assert gpu.look("cuda:1") == found


@pytest.mark.parametrize(
    ("device", "hidden", "there", "offered"),
    [
        ("cpu", None, True, "cpu"),
        ("cuda:1", None, False, "gpu"),
        ("auto", None, True, "gpu"),
        ("auto", None, False, "cpu"),
        ("auto", "", True, "cpu"),
    ],
)
def test_a_worker_offers_what_it_computes_on_and_its_labels(
    settings: ServerSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    device: str,
    hidden: str | None,
    there: bool,
    offered: str,
) -> None:
    monkeypatch.setattr(labels, "GPU_NODES", (tmp_path if there else tmp_path / "none",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    changed = settings.model_copy(update={"device": device, "labels": ("h200",)})

    assert labels.labels(changed) == (offered, "h200")


def test_a_retry_goes_on_with_the_work_of_the_job_that_it_repeats(
    service: JobService, settings: ServerSettings, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job = service.submit(Recipe.model_validate(tiny))
    service.cancel(job.id)
    retried = service.retry(job.id)
    (settings.work_dir / job.id / "1").mkdir(parents=True)
    supervisor = supervisor_of(settings, sessions)
    claim = supervisor.claim()
    assert claim is not None
    supervisor.take_over(claim)

    assert claim.job_id == retried.id
    assert [path.name for path in settings.work_dir.iterdir()] == [retried.id]
    assert (settings.work_dir / retried.id / "1").is_dir()
