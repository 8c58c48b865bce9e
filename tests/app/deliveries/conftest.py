"""A receiver, a webhook that leads to it, and a courier."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from app.db import Sessions
from app.deliveries.courier import Courier
from app.deliveries.service import WebhookService
from app.jobs import posting, store
from app.jobs.posting import NewJob
from app.keys.callers import operator
from app.settings import ServerSettings
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Failure, Source
from modelpress.contract.recipe import Recipe
from modelpress.contract.webhook import IssuedWebhook, WebhookRequest
from tests.support.receiver import Receiver, receiving
from tests.support.results import COMPARISON, FILES

Subscribe = Callable[..., IssuedWebhook]
RunJob = Callable[..., None]


@pytest.fixture
def settings(settings: ServerSettings) -> ServerSettings:
    """Settings that let webhooks lead to this machine."""
    return settings.model_copy(update={"webhook_networks": "127.0.0.0/8"})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as receiver:
        yield receiver


@pytest.fixture
def courier(settings: ServerSettings, sessions: Sessions) -> Courier:
    return Courier(settings, sessions)


@pytest.fixture
def webhooks(settings: ServerSettings, sessions: Sessions) -> WebhookService:
    return WebhookService(settings, sessions)


@pytest.fixture
def subscribe(webhooks: WebhookService, receiver: Receiver) -> Subscribe:
    """Makes a webhook of a team that leads to the receiver."""

    def make(team: str = "default", **fields: Any) -> IssuedWebhook:
        return webhooks.create(operator(team), WebhookRequest(**({"url": receiver.url} | fields)))

    return make


@pytest.fixture
def run_job(sessions: Sessions) -> RunJob:
    """Takes a job through its states by the statements that API and worker use."""

    def run(job_id: str = "job_1", code: FailureCode | None = None) -> None:
        recipe = Recipe(model="local:tiny", target_ratio=1.2, metadata={"run": "nightly"})
        source = Source(reference="local:tiny", model_type="llama", parameters=1000)
        with sessions.begin() as session:
            posting.submit(session, NewJob(job_id, recipe, source, max_attempts=1))
        with sessions.begin() as session:
            assert store.claim(session, job_id, "worker", 60.0) is not None
        with sessions.begin() as session:
            if code is None:
                assert store.finish(session, job_id, 1, 1.2, COMPARISON, FILES)
            else:
                assert store.fail(session, job_id, 1, Failure.of(code, "it did not work", attempt=1))

    return run


@pytest.fixture
def make_due(sessions: Sessions) -> Callable[[], None]:
    """Lets the time pass until everything that waits is due."""

    def let_time_pass() -> None:
        with sessions.begin() as session:
            session.execute(text("UPDATE deliveries SET next_at = clock_timestamp() WHERE state = 'pending'"))

    return let_time_pass
