"""What happens to a job, as pages and as a stream that can be cut at any point."""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.api.pace import wait_seconds
from app.api.watch import Watch
from app.db import Sessions
from app.jobs import store
from app.jobs.events import Happening
from app.settings import ServerSettings
from modelpress.contract.codes import FailureCode
from modelpress.contract.event import EventKind
from modelpress.contract.job import Failure, Job
from tests.support.server import serving
from tests.support.waiting import PATIENCE_SECONDS, wait_for

Post = Callable[[], Job]
CUTS = 50


def beat(sessions: Sessions, job_id: str, *happenings: Happening) -> None:
    with sessions.begin() as session:
        assert store.beat(session, job_id, 1, 60, None, happenings)


def claim(sessions: Sessions, job_id: str) -> None:
    with sessions.begin() as session:
        assert store.claim(session, job_id, "worker", 60)


def fail(sessions: Sessions, job_id: str) -> None:
    with sessions.begin() as session:
        assert store.fail(session, job_id, 1, Failure.of(FailureCode.DISK_FULL, "full", attempt=1))


def metric(step: int) -> Happening:
    return Happening(EventKind.METRIC, {"step": step, "name": "loss", "value": 1 / step})


def test_every_state_of_a_job_is_an_event(client: TestClient, post: Post, sessions: Sessions) -> None:
    job = post()
    claim(sessions, job.id)
    client.post(f"/jobs/{job.id}/cancel")
    with sessions.begin() as session:
        assert store.stop(session, job.id, 1)

    events = client.get(f"/jobs/{job.id}/events").json()["events"]
    assert [event["data"]["state"] for event in events] == ["queued", "running", "cancelling", "cancelled"]
    assert [event["attempt"] for event in events] == [0, 1, 1, 1]


def test_a_failure_says_why(client: TestClient, post: Post, sessions: Sessions) -> None:
    job = post()
    claim(sessions, job.id)
    fail(sessions, job.id)

    last = client.get(f"/jobs/{job.id}/events").json()["events"][-1]["data"]
    assert (last["state"], last["code"], last["message"]) == ("failed", "disk_full", "full")


def test_pages_of_one_kind_show_the_curve_of_a_running_job(client: TestClient, post: Post, sessions: Sessions) -> None:
    job = post()
    claim(sessions, job.id)
    beat(sessions, job.id, Happening(EventKind.STAGE, {"stage": "distill"}), *map(metric, range(1, 6)))

    first = client.get(f"/jobs/{job.id}/events?kind=metric&limit=3").json()
    rest = client.get(f"/jobs/{job.id}/events?kind=metric&after={first['next']}").json()
    assert [event["data"]["step"] for event in first["events"] + rest["events"]] == [1, 2, 3, 4, 5]
    assert client.get(f"/jobs/{job.id}/events?after={rest['next']}").json() == {"events": [], "next": None}


def test_what_a_worker_says_that_has_lost_the_job_is_not_kept(
    client: TestClient, post: Post, sessions: Sessions
) -> None:
    job = post()
    claim(sessions, job.id)
    with sessions.begin() as session:
        assert store.beat(session, job.id, 2, 60, None, [metric(1)]) is None

    assert client.get(f"/jobs/{job.id}/events?kind=metric").json()["events"] == []


@pytest.fixture
def service_address(settings: ServerSettings, engine: Engine) -> Iterator[str]:
    with serving(settings) as address:
        yield address


def read(address: str, last: int | None, most: int | None = None) -> list[dict[str, Any]]:
    """Return the events of a stream, which is cut after `most` of them."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    events: list[dict[str, Any]] = []
    with httpx2.stream("GET", address, headers=headers, timeout=PATIENCE_SECONDS) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == most:
                    break
    return events


def test_a_stream_that_is_cut_fifty_times_equals_the_table(
    service_address: str, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job_id = httpx2.post(f"{service_address}/jobs", json=tiny, timeout=PATIENCE_SECONDS).json()["id"]
    claim(sessions, job_id)
    chance = random.Random(5)  # noqa: S311 - any cuts will do

    def compute() -> None:
        for step in range(1, 200):
            beat(sessions, job_id, metric(step))
        fail(sessions, job_id)

    worker = threading.Thread(target=compute)
    worker.start()
    seen: list[dict[str, Any]] = []
    for _ in range(CUTS):
        last = seen[-1]["id"] if seen else None
        seen += read(f"{service_address}/jobs/{job_id}/events/stream", last, chance.randint(1, 3))
    seen += read(f"{service_address}/jobs/{job_id}/events/stream", seen[-1]["id"])
    worker.join()

    table = httpx2.get(f"{service_address}/jobs/{job_id}/events?limit=1000", timeout=PATIENCE_SECONDS).json()["events"]
    assert seen == table
    assert len(table) == 202


def test_the_watch_outlives_a_look_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(cast("Sessions", None))
    monkeypatch.setattr(watch, "newest", lambda _: {"job": 1}["another"])
    with watch.on("job") as news:
        asyncio.run(watch.look())
        assert not news.is_set()


def test_a_stream_that_is_taken_up_behind_the_last_event_ends(client: TestClient, post: Post) -> None:
    job = post()
    client.post(f"/jobs/{job.id}/cancel")
    last = client.get(f"/jobs/{job.id}/events").json()["events"][-1]["id"]

    answer = client.get(f"/jobs/{job.id}/events/stream", headers={"Last-Event-ID": str(last)})
    assert (answer.status_code, answer.text) == (200, "")


def test_the_head_of_a_stream_is_answered_and_done(service_address: str, tiny: dict[str, Any]) -> None:
    job_id = httpx2.post(f"{service_address}/jobs", json=tiny, timeout=PATIENCE_SECONDS).json()["id"]
    with httpx2.Client(base_url=service_address, timeout=PATIENCE_SECONDS) as http:
        head = http.head(f"/jobs/{job_id}/events/stream")
        assert head.headers["Content-Type"].startswith("text/event-stream")
        wait_for(lambda: stream_is_counted(http))


def stream_is_counted(http: httpx2.Client) -> bool:
    """Return whether a request for a stream has come to its end, which is when it is counted."""
    return 'method="HEAD",route="/jobs/{job_id}/events/stream"' in http.get("/metrics").text


def test_many_listeners_hold_no_database_connection(
    service_address: str, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job_id = httpx2.post(f"{service_address}/jobs", json=tiny, timeout=PATIENCE_SECONDS).json()["id"]
    listeners = 40  # more than the pool and its overflow hold
    with ThreadPoolExecutor(listeners) as pool:
        streams = [pool.submit(read, f"{service_address}/jobs/{job_id}/events/stream", None) for _ in range(listeners)]
        assert httpx2.get(f"{service_address}/jobs/{job_id}", timeout=PATIENCE_SECONDS).status_code == 200
        claim(sessions, job_id)
        fail(sessions, job_id)
        assert {len(stream.result()) for stream in streams} == {3}


def test_the_stream_of_an_unknown_job_is_not_found(client: TestClient) -> None:
    assert client.get("/jobs/job_none/events/stream").json()["type"] == "/problems/job_not_found"
    assert client.get("/jobs/job_none/events").json()["type"] == "/problems/job_not_found"


def test_a_request_that_may_wait_is_answered_when_the_job_ends(
    service_address: str, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job_id = httpx2.post(f"{service_address}/jobs", json=tiny, timeout=PATIENCE_SECONDS).json()["id"]
    claim(sessions, job_id)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            httpx2.get, f"{service_address}/jobs/{job_id}", headers={"Prefer": "wait=30"}, timeout=PATIENCE_SECONDS
        )
        fail(sessions, job_id)
        answer = waiting.result()
    assert (answer.json()["state"], answer.headers["Preference-Applied"]) == ("failed", "wait=30")
    assert answer.elapsed.total_seconds() < 25


def test_a_request_waits_no_longer_than_it_says(client: TestClient, post: Post) -> None:
    answer = client.get(f"/jobs/{post().id}", headers={"Prefer": "wait=1"})

    assert answer.json()["state"] == "queued"


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ("wait=999", 30),
        ("wait=x", 0),
        ("await=5", 0),
    ],
)
def test_the_preference_is_read_as_the_standard_says(prefer: str | None, seconds: int) -> None:
    assert wait_seconds(prefer) == seconds
