"""Logs of the server processes: one JSON object a line, with a named event and its fields."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from types import MappingProxyType
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

REQUEST: ContextVar[str | None] = ContextVar("request", default=None)
"""The id of the request that is being answered."""
CONTEXT: ContextVar[Mapping[str, object]] = ContextVar("context", default=MappingProxyType({}))
"""Fields of every record that is written meanwhile."""
FIELDS = "{asctime}{levelname}{name}{message}"
NAMES = {"asctime": "time", "levelname": "level", "name": "logger", "message": "event"}


def configure_logs(level: int = logging.INFO) -> None:
    """Write every log record of this process to standard error as JSON."""
    logging.basicConfig(level=level, handlers=[json_handler()], force=True)
    for chatty in ("httpx2", "celery", "kombu", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def json_handler(stream: TextIO | None = None) -> logging.Handler:
    """Return a handler that writes records as JSON to a stream; None stands for standard error."""
    formatter = JsonFormatter(FIELDS, style="{", rename_fields=NAMES, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(add_context)
    return handler


@contextmanager
def logging_with(**fields: object) -> Iterator[None]:
    """Add these fields to every record that is written in the block, but for those that are None."""
    token = CONTEXT.set({**CONTEXT.get(), **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        CONTEXT.reset(token)


def in_this_context(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function for a thread that is about to start: its records get the fields that ours get now."""
    return partial(copy_context().run, function)


def add_context(record: logging.LogRecord) -> bool:
    """Add the fields of the context to a record that does not have them; keep every record."""
    request_id = REQUEST.get()
    fields = CONTEXT.get() if request_id is None else {"request_id": request_id, **CONTEXT.get()}
    for name, value in fields.items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True
