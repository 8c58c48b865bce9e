"""What a record of the log carries besides its own fields."""

import json
import logging
import threading
from collections.abc import Iterator
from io import StringIO

import pytest

from app.logs import REQUEST, in_this_context, json_handler, logging_with

log = logging.getLogger(__name__)


@pytest.fixture
def written() -> Iterator[StringIO]:
    """Collects all that is logged during a test, in the format of the service's processes."""
    stream = StringIO()
    handler = json_handler(stream)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield stream
    log.removeHandler(handler)


def records(written: StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_record_carries_request_job_and_attempt(written: StringIO) -> None:
    with logging_with(request_id="r1", job_id="job_1", attempt=2):
        log.info("within")
    log.info("behind")
    within, behind = records(written)
    assert (within["request_id"], within["job_id"], within["attempt"]) == ("r1", "job_1", 2)
    assert not {"request_id", "job_id", "attempt"} & set(behind)


def test_its_own_fields_come_first_and_what_is_not_known_is_left_out(written: StringIO) -> None:
    with logging_with(job_id="job_1", request_id=None):
        log.info("of another job", extra={"job_id": "job_2"})
    (record,) = records(written)
    assert record["job_id"] == "job_2"
    assert "request_id" not in record


def test_a_thread_carries_on_what_its_starter_carried(written: StringIO) -> None:
    with logging_with(job_id="job_1"):
        thread = threading.Thread(target=in_this_context(lambda: log.info("in a thread")))
    thread.start()
    thread.join()
    (record,) = records(written)
    assert record["job_id"] == "job_1"


def test_a_request_that_is_answered_gives_its_id(written: StringIO) -> None:
    token = REQUEST.set("r1")
    log.info("answering")
    REQUEST.reset(token)
    (record,) = records(written)
    assert record["request_id"] == "r1"
