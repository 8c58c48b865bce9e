"""Whose turn it is: between teams, within one, and between devices."""

from collections.abc import Callable
from typing import Any

import pytest

from app.db import Sessions
from app.jobs import outages, roster, turns
from app.jobs.roster import Introduction
from app.jobs.service import JobService
from app.keys.callers import operator
from app.keys.setup import set_limits
from modelpress.contract.recipe import Recipe

Post = Callable[..., str]


@pytest.fixture
def post(service: JobService, sessions: Sessions, tiny: dict[str, Any]) -> Post:
    """Posts a job for a team and returns its id."""

    def post_job(team: str = "default", **fields: Any) -> str:
        set_limits(sessions, team, None, None, None)
        return service.of(operator(team)).submit(Recipe.model_validate(tiny | fields)).id

    return post_job


def claim(sessions: Sessions, *labels: str) -> str | None:
    with sessions.begin() as session:
        claimed = turns.claim_next(session, "worker", labels, 60)
    return None if claimed is None else claimed.job_id


def claim_all(sessions: Sessions, *labels: str) -> list[str]:
    return list(iter(lambda: claim(sessions, *labels), None))


def test_no_team_waits_behind_the_backlog_of_another(sessions: Sessions, post: Post) -> None:
    backlog = [post("ads") for _ in range(4)]
    late = [post("search"), post("maps")]

    assert set(claim_all(sessions)[:3]) == {backlog[0], *late}


def test_teams_take_turns(sessions: Sessions, post: Post) -> None:
    ads, search = [post("ads") for _ in range(3)], [post("search") for _ in range(2)]

    assert claim_all(sessions) == [ads[0], search[0], ads[1], search[1], ads[2]]


def test_within_a_team_priority_goes_before_age(sessions: Sessions, post: Post) -> None:
    normal, low, high, also_high = (post(priority=priority) for priority in (0, -1, 5, 5))

    assert claim_all(sessions) == [high, also_high, normal, low]


def test_a_job_for_a_device_waits_for_a_worker_that_offers_it(sessions: Sessions, post: Post) -> None:
    on_gpu, anywhere = post(device="gpu"), post()

    assert claim_all(sessions, "cpu") == [anywhere]
    assert claim_all(sessions, "gpu", "h200") == [on_gpu]


def test_a_team_at_its_limit_holds_up_no_other(sessions: Sessions, post: Post) -> None:
    ads, search = [post("ads") for _ in range(2)], [post("search") for _ in range(2)]
    set_limits(sessions, "ads", None, 1, None)

    assert claim_all(sessions) == [ads[0], *search]


def test_a_waiting_job_says_how_many_go_before_it(service: JobService, sessions: Sessions, post: Post) -> None:
    first, second, urgent, other = post(), post(), post(priority=1), post(device="gpu")
    post("ads")

    positions = [service.get(job_id).waiting for job_id in (first, second, urgent, other)]
    assert [waiting and waiting.position for waiting in positions] == [2, 3, 1, 4]
    claim_all(sessions)
    assert service.get(urgent).waiting is None


def test_a_waiting_job_says_whether_anybody_serves_it(service: JobService, sessions: Sessions, post: Post) -> None:
    anywhere, on_gpu = post(), post(device="gpu")
    with sessions.begin() as session:
        roster.beat(session, Introduction("host:1", "0.1", "cpu", ("cpu",)))

    served = [service.get(job_id).waiting for job_id in (anywhere, on_gpu)]
    assert [waiting and waiting.workers for waiting in served] == [1, 0]


def test_a_worker_that_lost_the_answer_to_its_claim_hands_the_job_back(sessions: Sessions, post: Post) -> None:
    job = post()
    assert claim(sessions) == job
    with sessions.begin() as session:
        assert outages.disown(session, "worker")

    assert claim(sessions) == job
