"""Logs of the server processes: one JSON object a line, with a named event and its fields."""

import logging
import time

from pythonjsonlogger.json import JsonFormatter

FIELDS = "{asctime}{levelname}{name}{message}"
NAMES = {"asctime": "time", "levelname": "level", "name": "logger", "message": "event"}


def configure_logs(level: int = logging.INFO) -> None:
    """Write every log record of this process to standard error as JSON."""
    formatter = JsonFormatter(FIELDS, style="{", rename_fields=NAMES, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx2", "celery", "kombu", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
