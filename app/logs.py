"""Logs of the server processes: one JSON object a line, with a named event and its fields."""

import logging
import time
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

REQUEST: ContextVar[str | None] = ContextVar("request", default=None)
"""The id of the request that is being answered."""
FIELDS = "{asctime}{levelname}{name}{message}"
NAMES = {"asctime": "time", "levelname": "level", "name": "logger", "message": "event"}


def configure_logs(level: int = logging.INFO) -> None:
    """Write every log record of this process to standard error as JSON."""
    formatter = JsonFormatter(FIELDS, style="{", rename_fields=NAMES, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(add_request)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx2", "celery", "kombu", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def add_request(record: logging.LogRecord) -> bool:
    """Add the id of the request that is being answered to a record that has none; keep every record."""
    request_id = REQUEST.get()
    if request_id is not None and not hasattr(record, "request_id"):
        record.request_id = request_id
    return True
