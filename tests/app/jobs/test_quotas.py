"""What a team may have, whatever comes at once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.db import Sessions
from app.errors import QueueFull, QuotaExceeded
from app.jobs import store
from app.jobs.service import JobService
from app.keys.callers import operator
from app.keys.setup import set_limits
from app.storage import StoredFile
from modelpress.contract.recipe import Recipe
from tests.support.results import COMPARISON

LIMIT = 2


@pytest.fixture
def recipe(tiny: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(tiny)


def limit(sessions: Sessions, **limits: int) -> None:
    none = {"max_queued": None, "max_running": None, "max_stored_bytes": None}
    set_limits(sessions, "default", **(none | limits))


def claim(sessions: Sessions, job_id: str) -> store.Claim | None:
    with sessions.begin() as session:
        return store.claim(session, job_id, "worker", 60)


def test_of_fifty_posts_at_once_as_many_are_accepted_as_may_wait(
    service: JobService, sessions: Sessions, recipe: Recipe
) -> None:
    limit(sessions, max_queued=LIMIT)

    def post(_: int) -> bool:
        try:
            return bool(service.submit(recipe))
        except QuotaExceeded:
            return False

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(post, range(50))) == LIMIT
    assert service.team().queued.used == LIMIT


def test_of_fifty_posts_at_once_as_many_are_accepted_as_the_service_lets_wait(
    service: JobService, recipe: Recipe
) -> None:
    service.settings = service.settings.model_copy(update={"max_queued": LIMIT})

    def post(_: int) -> bool:
        try:
            return bool(service.submit(recipe))
        except QueueFull:
            return False

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(post, range(50))) == LIMIT


def test_of_many_claims_at_once_as_many_succeed_as_may_run(
    service: JobService, sessions: Sessions, recipe: Recipe
) -> None:
    jobs = [service.submit(recipe).id for _ in range(8)]
    limit(sessions, max_running=LIMIT)

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda job_id: claim(sessions, job_id), jobs))
    assert sum(each is not None for each in claims) == LIMIT
    assert service.team().running.used == LIMIT


def test_a_job_that_ends_makes_room(service: JobService, sessions: Sessions, recipe: Recipe) -> None:
    first, second = (service.submit(recipe).id for _ in range(2))
    limit(sessions, max_running=1)
    assert claim(sessions, first)
    assert claim(sessions, second) is None
    with sessions.begin() as session:
        assert store.release(session, first, 1)
    assert claim(sessions, second)


def test_a_team_that_stores_too_much_posts_nothing_more(
    service: JobService, sessions: Sessions, recipe: Recipe
) -> None:
    job = service.submit(recipe).id
    file = StoredFile("model.safetensors", 1000, "0" * 64, "application/octet-stream")
    claim(sessions, job)
    with sessions.begin() as session:
        assert store.finish(session, job, 1, 1.3, COMPARISON, [file])
    limit(sessions, max_stored_bytes=1000)

    with pytest.raises(QuotaExceeded, match="1,000 bytes"):
        service.submit(recipe)
    assert (service.team().stored_bytes.used, service.team().stored_bytes.limit) == (1000, 1000)


def test_another_team_is_not_held_to_it(service: JobService, sessions: Sessions, recipe: Recipe) -> None:
    limit(sessions, max_queued=0)
    set_limits(sessions, "search", None, None, None)

    with pytest.raises(QuotaExceeded):
        service.submit(recipe)
    assert service.of(operator("search")).submit(recipe).team == "search"


def test_a_repeated_request_is_answered_although_the_team_is_full(
    service: JobService, sessions: Sessions, recipe: Recipe
) -> None:
    job = service.submit(recipe, "key")
    limit(sessions, max_queued=1)

    assert service.submit(recipe, "key") == job
