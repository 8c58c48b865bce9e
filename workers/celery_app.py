"""A worker: Celery as doorbell and process shell around the supervisor and the sweeper.

The threads pool with one slot keeps Celery answering during a job and lets a task hear that the worker shuts down.
"""

import logging
import os
import socket
import threading
import time

from celery.signals import setup_logging, worker_shutting_down
from sqlalchemy.exc import OperationalError

from app.db import Sessions, make_engine, make_sessions
from app.jobs.doorbell import Doorbell, make_celery
from app.jobs.installation import claim_files
from app.settings import ServerSettings
from app.storage import Storage
from app.storage.registry import open_storage
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper
from workers.tasks import register

DATABASE_PAUSE_SECONDS = 2.0

log = logging.getLogger(__name__)


def run_worker(settings: ServerSettings) -> None:
    """Hear the queue until SIGTERM or SIGINT."""
    engine = make_engine(settings.database_url)
    sessions = make_sessions(engine)
    stopping = threading.Event()
    name = f"{socket.gethostname()}:{os.getpid()}"
    storage = open_storage(settings.artifacts_url)
    supervisor = Supervisor(settings, sessions, storage, name, stopping)
    identity = wait_for_files(settings, sessions, storage)
    repairs = Sweeper(settings, sessions, Doorbell(settings), storage, identity)
    sweeper = threading.Thread(target=repairs.run, args=(stopping,), name="sweeper", daemon=True)
    celery = make_celery(settings)
    register(celery, supervisor)

    def begin_to_stop(**_: object) -> None:
        stopping.set()

    def leave_logs_alone(**_: object) -> None:
        """That somebody listens to this signal keeps Celery from setting up logs of its own."""

    worker_shutting_down.connect(begin_to_stop, weak=False)
    setup_logging.connect(leave_logs_alone, weak=False)
    sweeper.start()
    try:
        celery.worker_main(
            [
                "--quiet",
                "worker",
                "--pool=threads",
                "--concurrency=1",
                "--without-mingle",
                f"--queues={settings.queue}",
                f"--hostname={settings.queue}-{os.getpid()}@%h",
            ]
        )
    finally:
        stopping.set()
        sweeper.join(timeout=5)
        engine.dispose()


def wait_for_files(settings: ServerSettings, sessions: Sessions, storage: Storage) -> str:
    """Return the identity of the database once it answers; until then there is nothing that a worker may touch.

    Raises:
        ForeignDataDirectory: data directory or storage belong to another database.
        NotMigrated: the database has no identity yet.
    """
    while True:
        try:
            return claim_files(settings, sessions, storage)
        except OperationalError as error:
            log.warning("waits_for_database", extra={"reason": type(error.orig).__name__})
            time.sleep(DATABASE_PAUSE_SECONDS)
