"""A worker: Celery as doorbell and process shell around the supervisor and the sweeper.

The threads pool with one slot keeps Celery answering during a job and lets a task hear that the worker shuts down.
"""

import logging
import os
import socket
import threading

from celery.signals import setup_logging, worker_shutting_down

from app.db import make_engine, make_sessions
from app.jobs.doorbell import Doorbell, make_celery
from app.settings import ServerSettings
from app.storage.registry import open_storage
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper
from workers.tasks import register

log = logging.getLogger(__name__)


def run_worker(settings: ServerSettings) -> None:
    """Hear the queue until SIGTERM or SIGINT."""
    engine = make_engine(settings.database_url)
    sessions = make_sessions(engine)
    stopping = threading.Event()
    name = f"{socket.gethostname()}:{os.getpid()}"
    storage = open_storage(settings.artifacts_url)
    supervisor = Supervisor(settings, sessions, storage, name, stopping)
    repairs = Sweeper(settings, sessions, Doorbell(settings), storage)
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
