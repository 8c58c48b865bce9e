"""The health check of a worker's container: exits with 0 if the worker in this container answers over the broker.

A worker also answers during a job. It stops answering when it has lost the broker for good, although its process lives
on.
"""

import socket
import sys

from kombu.exceptions import OperationalError

from app.jobs.doorbell import make_celery
from app.settings import Settings

TIMEOUT_SECONDS = 5.0


def main() -> None:
    """Exit with a message unless the worker answers."""
    control = make_celery(Settings().completed()).control
    try:
        answers = control.ping(timeout=TIMEOUT_SECONDS, limit=1, pattern=f"*@{socket.gethostname()}", matcher="glob")
    except OperationalError as error:
        sys.exit(f"the broker does not answer: {error}")
    if not answers:
        sys.exit("the worker does not answer")


if __name__ == "__main__":
    main()
