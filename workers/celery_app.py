"""A worker: Celery as doorbell and process shell around the supervisor and the sweeper.

The threads pool with one slot keeps Celery answering during a job and lets a task hear that the worker shuts down.
"""

import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version

from celery.signals import setup_logging, worker_shutting_down
from sqlalchemy import Engine

from app.db import OUTAGES, at_head, make_engine, make_sessions
from app.deliveries.courier import Courier
from app.errors import NotMigrated
from app.jobs.doorbell import BackgroundDoorbell, Doorbell, make_celery, queue_of
from app.jobs.installation import claim_files
from app.jobs.roster import Introduction
from app.settings import ServerSettings, Settings
from app.storage import Storage
from app.storage.registry import open_storage
from modelpress.errors import ModelpressError
from workers import metrics
from workers.gpu import look
from workers.labels import GPU, device_class
from workers.orphans import BROOD
from workers.presence import Presence
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper
from workers.tasks import register

DATABASE_PAUSE_SECONDS = 2.0
SHORTEST_PATIENCE_SECONDS = 1.0
LONGEST_PATIENCE_SECONDS = 10.0
END_SECONDS = 5.0

log = logging.getLogger(__name__)


class WorkerFailed(ModelpressError):
    """The worker has ended although nobody asked it to."""

    code = "worker_failed"
    title = "The worker cannot run"


def run_worker(settings: ServerSettings) -> None:
    """Compute jobs until SIGTERM or SIGINT.

    Raises:
        WorkerFailed: it ended without having been asked to.
    """
    engine = make_engine(settings.database_url, patience_seconds=patience(settings.lease_seconds))
    sessions = make_sessions(engine)
    stopping = threading.Event()
    name = own_name()
    storage = open_storage(settings.artifacts_url)
    supervisor = Supervisor(settings, sessions, storage, name, stopping)
    identity = wait_for_files(settings, engine, storage)
    BROOD.adopt()
    repairs = Sweeper(settings, sessions, BackgroundDoorbell(Doorbell(settings)), storage, identity)
    introduction = Introduction(name, version("modelpress"), device_class(settings), supervisor.labels)
    metrics.BUSY.set_function(lambda: float(supervisor.turn.locked()))
    if settings.metrics_port is not None:
        metrics.serve(settings.host, settings.metrics_port)
    presence = Presence(sessions, introduction, supervisor.draining, supervisor.turn, look=partial(with_gpu, settings))
    threads = [
        threading.Thread(target=repairs.run, args=(stopping,), name="sweeper", daemon=True),
        threading.Thread(target=presence.run, args=(stopping,), name="presence", daemon=True),
        threading.Thread(target=Courier(settings, sessions).run, args=(stopping,), name="courier", daemon=True),
        threading.Thread(target=look_for_jobs, args=(settings, supervisor, stopping), name="looker", daemon=True),
    ]

    def begin_to_stop(**_: object) -> None:
        stopping.set()

    def leave_logs_alone(**_: object) -> None:
        """Do nothing: a listener on this signal keeps Celery from setting up logs of its own."""

    worker_shutting_down.connect(begin_to_stop, weak=False)
    setup_logging.connect(leave_logs_alone, weak=False)
    for thread in threads:
        thread.start()
    try:
        listen(settings, supervisor)
        if not stopping.is_set():
            raise WorkerFailed("The listener of the queue has ended unasked; its reason stands in the log.")
    finally:
        stopping.set()
        for thread in threads:
            thread.join(settings.stop_grace_seconds + END_SECONDS)
        engine.dispose()


def own_name() -> str:
    """Return a name that no other worker has: in containers, hosts and processes are often numbered alike."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"


def with_gpu(settings: Settings, worker: Introduction) -> Introduction:
    """Return the introduction with the GPU on which the worker computes, if it computes on one that torch sees."""
    found = look(settings.device) if device_class(settings) == GPU else None
    return worker if found is None else replace(worker, gpu=found.name, gpu_memory_bytes=found.memory_bytes)


def listen(settings: ServerSettings, supervisor: Supervisor) -> None:
    """Hear the queue until a signal ends that."""
    celery = make_celery(settings)
    register(celery, supervisor)
    try:
        celery.worker_main(
            [
                "--quiet",
                "worker",
                "--pool=threads",
                "--concurrency=1",
                "--without-mingle",
                f"--queues={','.join(queue_of(settings.queue, label) for label in (None, *supervisor.labels))}",
                f"--hostname={settings.queue}-{os.getpid()}@%h",
            ]
        )
    except SystemExit as error:
        log.info("listener_ended", extra={"status": error.code})


def look_for_jobs(settings: Settings, supervisor: Supervisor, stopping: threading.Event) -> None:
    """Look into the database from time to time for jobs whose bell was not heard."""
    while not stopping.wait(settings.ring_again_seconds):
        try:
            supervisor.look()
        except Exception:  # a loop that must outlive any surprise; it is logged and tried again
            log.exception("look_failed")


def patience(lease_seconds: float) -> float:
    """Return how long a worker waits for the database: a beat that hangs must leave time for another one."""
    return min(max(lease_seconds / 3, SHORTEST_PATIENCE_SECONDS), LONGEST_PATIENCE_SECONDS)


def wait_for_files(settings: ServerSettings, engine: Engine, storage: Storage) -> str:
    """Return the identity of the database once it answers; until then there is nothing that a worker may touch.

    Raises:
        ForeignDataDirectory: data directory or storage belong to another database.
        NotMigrated: the schema is that of an older version.
    """
    while True:
        try:
            if not at_head(engine):
                raise NotMigrated("The database lacks migrations. Run `modelpress migrate`.")
            return claim_files(settings, make_sessions(engine), storage)
        except OUTAGES as error:
            log.warning("waits_for_database", extra={"reason": type(error).__name__})
            time.sleep(DATABASE_PAUSE_SECONDS)
