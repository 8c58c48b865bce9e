"""Rings the workers: one Celery message that carries a job id and nothing else.

The message is only a hint. It may be lost, doubled or late: a worker claims the job in Postgres or drops the message,
and the sweeper rings again for a job that nobody claimed.
"""

import logging
import queue
import threading
from contextlib import suppress
from typing import Any, Protocol

from celery import Celery

from app.settings import ServerSettings

TASK = "modelpress.run_job"
VISIBILITY_TIMEOUT_SECONDS = 7 * 24 * 3600
SOCKET_TIMEOUT_SECONDS = 5
LISTENER_TIMEOUT_SECONDS = 30
MOST_WAITING = 1000

log = logging.getLogger(__name__)


class Rings(Protocol):
    def ring(self, job_id: str, device: str | None = None) -> bool: ...


class Doorbell:
    """The sending side of the queue."""

    def __init__(self, settings: ServerSettings) -> None:
        self.queue = settings.queue
        self.celery = make_celery(settings)
        # A listener waits for longer, since its broker says nothing while there is no message.
        self.celery.conf.broker_transport_options["socket_timeout"] = SOCKET_TIMEOUT_SECONDS

    def ring(self, job_id: str, device: str | None = None) -> bool:
        """Ring the workers that offer the device.

        Return False when the broker does not take the message; that loses nothing but time.
        """
        try:
            self.celery.send_task(TASK, args=(job_id,), queue=queue_of(self.queue, device), retry=False)
        except Exception as error:  # noqa: BLE001 - a hint that cannot be given must not fail what it hints at
            log.warning("doorbell_not_rung", extra={"job_id": job_id, "reason": type(error).__name__})
            return False
        return True

    def check(self) -> None:
        """Raise what there is to raise where the broker does not answer."""
        with self.celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)


class BackgroundDoorbell:
    """Rings from a thread of its own, so that a broker that hangs holds up nobody.

    What does not fit into the queue is dropped: the sweeper rings for it again.
    """

    def __init__(self, doorbell: Rings) -> None:
        self.doorbell = doorbell
        self.waiting: queue.Queue[tuple[str, str | None] | None] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self.ring_each, name="doorbell", daemon=True).start()

    def ring(self, job_id: str, device: str | None = None) -> bool:
        """Return whether the job will be rung for; never waits."""
        try:
            self.waiting.put_nowait((job_id, device))
        except queue.Full:
            log.warning("doorbell_overrun", extra={"job_id": job_id})
            return False
        return True

    def ring_each(self) -> None:
        """Ring until `close`."""
        while (job := self.waiting.get()) is not None:
            self.doorbell.ring(*job)

    def close(self) -> None:
        """Let the thread end once it has rung for what waits now; does not wait for that."""
        with suppress(queue.Full):
            self.waiting.put_nowait(None)


def queue_of(queue: str, device: str | None) -> str:
    """Return the name of the queue in which jobs for a device are rung; None stands for any device."""
    return queue if device is None else f"{queue}.{device}"


def make_celery(settings: ServerSettings) -> Celery:
    """Celery as doorbell and process shell: JSON only, no results, late acknowledgement, one message at a time.

    The visibility timeout lies far above any job, since a redelivered message would find nothing to claim anyway;
    recovery comes from the lease in the database.
    """
    celery = Celery("modelpress", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    celery.conf.update(celery_options(settings))
    return celery


def celery_options(settings: ServerSettings) -> dict[str, Any]:
    return {
        "task_default_queue": settings.queue,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_soft_shutdown_timeout": settings.stop_grace_seconds + 5,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A broker that answers with an error, such as one that has become a read-only replica, is tried again.
        "broker_channel_error_retry": True,
        "broker_connection_timeout": SOCKET_TIMEOUT_SECONDS,
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        "redis_socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            "socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_timeout": LISTENER_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            # A broker that is down must not hold up a POST; whoever listens connects again by other options.
            "max_retries": 1,
            "interval_start": 0,
        },
    }
