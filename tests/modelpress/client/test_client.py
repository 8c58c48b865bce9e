"""The client against a server that answers by script: what it asks, repeats, and refuses to believe."""

import asyncio
import time
from pathlib import Path

import pytest

from modelpress.client import AsyncClient, Client, ProblemError, ServiceUnreachable, UnexpectedAnswer, Wanted
from modelpress.contract.job import Problem, State
from modelpress.contract.recipe import Recipe
from tests.support.loopback import Script, make_job, running, succeeded

RECIPE = Recipe(model="local:tiny", target_ratio=1.5)
BUSY = Problem(type="about:blank", title="The database does not answer", status=503, detail="try again")
REFUSED = Problem(
    type="about:blank",
    title="The target ratio cannot be reached",
    status=422,
    detail="the recipe is refused",
    errors=[{"field": "target_ratio", "message": "must be between 1.02 and 2.31"}],
)


def test_submit_sends_only_what_was_given(script: Script) -> None:
    with Client(script.url) as client:
        job = client.submit(RECIPE)
    assert job.state is State.QUEUED
    assert script.posted == [{"model": "local:tiny", "target_ratio": 1.5}]


def test_a_refusal_carries_the_problem_and_names_the_field(script: Script) -> None:
    script.refusals = [REFUSED]
    with Client(script.url) as client, pytest.raises(ProblemError) as refusal:
        client.submit(RECIPE)
    assert refusal.value.problem == REFUSED
    assert "target_ratio: must be between 1.02 and 2.31" in str(refusal.value)


def test_reading_is_repeated_while_the_service_is_busy(script: Script) -> None:
    script.refusals = [BUSY, BUSY]
    with Client(script.url) as client:
        assert client.get("job_1").state is State.SUCCEEDED
    assert script.asked("GET") == ["/jobs/job_1"] * 3


def test_too_many_requests_are_waited_out_and_a_full_quota_is_not(script: Script) -> None:
    limited, full = (
        Problem(type=f"/problems/{code}", title=code, status=429, detail=code)
        for code in ("too_many_requests", "quota_exceeded")
    )
    with Client(script.url) as client:
        script.refusals, script.retry_after = [limited], 1
        assert client.get("job_1").state is State.SUCCEEDED
        script.refusals = [full]
        with pytest.raises(ProblemError, match="quota_exceeded"):
            client.get("job_1")


def test_cancelling_is_repeated_while_the_service_is_busy(script: Script) -> None:
    script.refusals = [BUSY]
    with Client(script.url) as client:
        assert client.cancel("job_1").state is State.CANCELLED
    assert script.asked("POST") == ["/jobs/job_1/cancel"] * 2


def test_submitting_is_repeated_with_the_same_key(script: Script) -> None:
    script.refusals = [BUSY]
    with Client(script.url) as client:
        client.submit(RECIPE)
        client.submit(RECIPE)
    first, second, other = script.keys
    assert first == second != other


def test_no_service_is_reported_with_its_address_once_patience_ends(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    with Client(url, patience_seconds=0.3) as client, pytest.raises(ServiceUnreachable, match=url):
        client.get("job_1")


def test_an_answer_that_is_not_the_contracts_is_refused(script: Script) -> None:
    script.page = b"<h1>Welcome</h1>"
    with Client(script.url) as client, pytest.raises(UnexpectedAnswer, match="Check the address"):
        client.get("job_1")


def test_waiting_yields_every_look_up_to_the_last_state(script: Script) -> None:
    script.states = [make_job(State.QUEUED, attempt=0), running(0.5), succeeded()]
    with Client(script.url) as client:
        states = [job.state for job in client.wait("job_1", poll_seconds=0)]
    assert states == [State.QUEUED, State.RUNNING, State.SUCCEEDED]


def test_the_page_is_asked_for_by_state_and_limit(script: Script) -> None:
    with Client(script.url) as client:
        client.page(Wanted(state=State.SUCCEEDED), limit=5)
    assert script.asked("GET") == ["/jobs?limit=5&state=succeeded"]


def test_aliveness_is_asked_without_patience(script: Script, free_port: int) -> None:
    with Client(script.url) as client, Client(f"http://127.0.0.1:{free_port}") as nobody:
        assert client.is_alive()
        assert not nobody.is_alive()


def test_artifacts_are_listed_with_their_digests(script: Script, tmp_path: Path) -> None:
    script.files = {"config.json": b"{}"}
    with Client(script.url) as client:
        (artifact,) = client.artifacts("job_1")
    assert (artifact.name, artifact.bytes) == ("config.json", 2)


def test_waiting_asks_the_service_to_hold_back_its_answer(script: Script) -> None:
    script.states = [running(0.5), succeeded()]
    with Client(script.url) as client:
        assert [job.state for job in client.wait("job_1")] == [State.RUNNING, State.SUCCEEDED]
    assert script.preferences == ["wait=20", "wait=20"]


def test_a_busy_service_is_asked_again_when_it_says(script: Script) -> None:
    script.refusals, script.retry_after = [BUSY], 1
    asked = time.monotonic()
    with Client(script.url) as client:
        client.get("job_1")
    assert time.monotonic() - asked >= 1


def test_jobs_and_events_are_read_page_by_page(script: Script) -> None:
    with Client(script.url) as client:
        assert [job.id for job in client.jobs(Wanted(metadata={"team": "search"}))] == ["job_1"]
        assert [event.id for event in client.events("job_1")] == [1, 2, 3, 4]
    assert script.asked("GET")[0] == "/jobs?metadata=team%3Dsearch"


def test_the_asynchronous_client_does_the_same(script: Script, tmp_path: Path) -> None:
    script.refusals = [BUSY]
    script.files = {"config.json": b"{}"}

    async def use() -> list[object]:
        async with AsyncClient(script.url) as client:
            posted = await client.submit(RECIPE)
            ended = await client.wait(posted.id)
            listed = [job.id async for job in client.jobs()]
            happened = [event.id async for event in client.events(posted.id)]
            paths = await client.download(posted.id, tmp_path)
            return [ended.state, listed, happened, [path.read_bytes() for path in paths]]

    assert asyncio.run(use()) == [State.SUCCEEDED, ["job_1"], [1, 2, 3, 4], [b"{}"]]
    assert len(set(script.keys)) == 1


def test_the_key_of_the_environment_is_sent_and_never_shown(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_API_KEY", "mp_secret")
    with Client(script.url) as client:
        client.get("job_1")
        assert "mp_secret" not in repr(client) + repr(vars(client))
    assert script.authorizations == ["Bearer mp_secret"]
