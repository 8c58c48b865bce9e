"""Events of jobs reach their receivers: signed, at least once, under one id, whatever dies or is down meanwhile."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from app.db import Sessions
from app.deliveries import store
from app.deliveries.courier import Courier
from app.deliveries.service import WebhookService
from app.jobs import posting
from app.keys.callers import operator
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Source
from modelpress.contract.recipe import Recipe
from modelpress.contract.webhook import Delivery, DeliveryState, EventName, IssuedWebhook
from tests.support.receiver import Receiver, receiving

Subscribe = Callable[..., IssuedWebhook]
RunJob = Callable[..., None]


@pytest.fixture
def log(webhooks: WebhookService) -> Callable[[IssuedWebhook], list[Delivery]]:
    """Returns what was sent to a webhook, oldest first."""
    return lambda webhook: list(webhooks.log(operator("default"), webhook.id, None, 100).deliveries)[::-1]


def test_the_end_of_a_job_is_told_with_a_signature_that_the_stock_library_verifies(
    subscribe: Subscribe, run_job: RunJob, courier: Courier, receiver: Receiver
) -> None:
    webhook = subscribe()
    run_job()
    courier.send_due()
    (request,) = receiver.received
    told: dict[str, Any] = Verifier(webhook.secret).verify(request.body, request.headers)
    assert told["type"] == "job.succeeded"
    assert told["data"] | {"id": "job_1", "achieved_ratio": 1.2, "metadata": {"run": "nightly"}} == told["data"]
    assert told["data"]["error"] is None


def test_after_a_rotation_both_secrets_verify_and_a_day_later_the_new_one_alone(
    subscribe: Subscribe,
    run_job: RunJob,
    courier: Courier,
    receiver: Receiver,
    webhooks: WebhookService,
    sessions: Sessions,
) -> None:
    old = subscribe()
    new = webhooks.rotate(operator("default"), old.id)
    run_job("job_1")
    courier.send_due()
    with sessions.begin() as session:
        session.execute(text("UPDATE subscriptions SET old_secret_until = clock_timestamp()"))
    run_job("job_2")
    courier.send_due()
    first, second = receiver.received
    for secret in (old.secret, new.secret):
        Verifier(secret).verify(first.body, first.headers)
    Verifier(new.secret).verify(second.body, second.headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(old.secret).verify(second.body, second.headers)


def test_a_failure_is_told_with_its_code(
    subscribe: Subscribe, run_job: RunJob, courier: Courier, receiver: Receiver
) -> None:
    subscribe()
    run_job(code=FailureCode.NO_TOKENIZER)
    courier.send_due()
    (request,) = receiver.received
    assert json.loads(request.body)["data"]["error"] == {"code": "no_tokenizer", "message": "it did not work"}


def test_a_webhook_is_told_of_the_events_that_it_asks_for(
    subscribe: Subscribe, run_job: RunJob, courier: Courier, receiver: Receiver
) -> None:
    subscribe(events=[EventName.RUNNING, EventName.QUEUED])
    run_job()
    courier.send_due()
    assert sorted(json.loads(request.body)["type"] for request in receiver.received) == ["job.queued", "job.running"]


def test_a_team_is_not_told_of_the_jobs_of_another(
    subscribe: Subscribe, run_job: RunJob, courier: Courier, receiver: Receiver
) -> None:
    subscribe("another")
    run_job()
    assert courier.send_due() == 0
    assert receiver.received == []


def test_teams_take_turns_whatever_each_has_waiting(
    subscribe: Subscribe, webhooks: WebhookService, sessions: Sessions
) -> None:
    for number in range(3):
        webhook = subscribe("busy", url=f"http://127.0.0.1:1/{number}")
        for _ in range(2):
            webhooks.test(operator("busy"), webhook.id)
    waiting = webhooks.test(operator("default"), subscribe().id)
    with sessions.begin() as session:
        taken = store.take_due(session, 2)
    assert waiting.message_id in [delivery.message_id for delivery in taken]


def test_what_did_not_happen_after_all_is_not_told(
    subscribe: Subscribe, sessions: Sessions, courier: Courier, receiver: Receiver
) -> None:
    subscribe(events=[EventName.QUEUED])
    source = Source(reference="local:tiny", model_type="llama", parameters=1000)
    with sessions() as session:
        posting.submit(session, posting.NewJob("job_1", Recipe(model="local:tiny", target_ratio=1.2), source, 1))
        session.rollback()
    assert courier.send_due() == 0
    assert receiver.received == []


def test_what_a_receiver_missed_while_it_was_down_arrives_under_one_id(
    subscribe: Subscribe,
    run_job: RunJob,
    courier: Courier,
    receiver: Receiver,
    make_due: Callable[[], None],
    log: Callable[[IssuedWebhook], list[Delivery]],
) -> None:
    away = Receiver()
    with receiving(away):
        webhook = subscribe(url=away.url)
    for number in range(20):
        run_job(f"job_{number}")
    while courier.send_due():
        pass
    waiting = log(webhook)
    assert {(each.state, each.attempts) for each in waiting} == {(DeliveryState.PENDING, 1)}
    assert "does not answer" in (waiting[0].error or "")
    make_due()
    with receiving(away):
        while courier.send_due():
            pass
    assert sorted(request.headers["webhook-id"] for request in away.received) == sorted(
        each.message_id for each in waiting
    )
    for request in away.received:
        Verifier(webhook.secret).verify(request.body, request.headers)
    assert {(each.state, each.attempts) for each in log(webhook)} == {(DeliveryState.DELIVERED, 2)}


def test_what_a_worker_was_sending_when_it_died_is_sent_by_another(
    subscribe: Subscribe, run_job: RunJob, sessions: Sessions, courier: Courier, receiver: Receiver
) -> None:
    subscribe()
    run_job()
    with sessions.begin() as session:
        assert len(store.take_due(session, 10)) == 1
    assert courier.send_due() == 0
    with sessions.begin() as session:
        session.execute(
            text("UPDATE deliveries SET next_at = next_at - make_interval(secs => :s)"), {"s": store.SEND_SECONDS}
        )
    courier.send_due()
    assert len(receiver.received) == 1


def test_after_the_last_attempt_it_is_dead_and_can_be_sent_again_under_the_same_id(
    subscribe: Subscribe,
    run_job: RunJob,
    courier: Courier,
    receiver: Receiver,
    webhooks: WebhookService,
    make_due: Callable[[], None],
    log: Callable[[IssuedWebhook], list[Delivery]],
) -> None:
    webhook = subscribe()
    run_job()
    receiver.status = 500
    for _ in range(len(store.DELAYS) + 1):
        assert courier.send_due() == 1
        make_due()
    (dead,) = log(webhook)
    assert (dead.state, dead.attempts, dead.error) == (DeliveryState.DEAD, 10, "the receiver answers 500")
    assert courier.send_due() == 0
    receiver.status = 200
    webhooks.send_again(operator("default"), webhook.id, dead.id)
    courier.send_due()
    (delivered,) = log(webhook)
    assert (delivered.state, delivered.message_id) == (DeliveryState.DELIVERED, dead.message_id)


def test_each_attempt_waits_for_longer(
    subscribe: Subscribe,
    run_job: RunJob,
    courier: Courier,
    receiver: Receiver,
    sessions: Sessions,
    make_due: Callable[[], None],
) -> None:
    subscribe()
    run_job()
    receiver.status = 503
    waits = []
    for _ in range(3):
        courier.send_due()
        with sessions() as session:
            waits.append(session.scalar(text("SELECT extract(epoch FROM next_at - clock_timestamp()) FROM deliveries")))
        make_due()
    assert [4 < waits[0] < 6, 290 < waits[1] < 331, 1790 < waits[2] < 1981] == [True] * 3


def test_a_receiver_that_wants_nothing_any_more_is_sent_nothing(
    subscribe: Subscribe, run_job: RunJob, courier: Courier, receiver: Receiver, webhooks: WebhookService
) -> None:
    subscribe()
    receiver.status = 410
    run_job("job_1")
    courier.send_due()
    run_job("job_2")
    assert courier.send_due() == 0
    (webhook,) = webhooks.list(operator("default")).webhooks
    assert webhook.disabled_at is not None


def test_a_slow_receiver_leaves_room_for_the_others(subscribe: Subscribe, run_job: RunJob, sessions: Sessions) -> None:
    subscribe()
    for number in range(10):
        run_job(f"job_{number}")
    subscribe(events=[EventName.RUNNING])
    run_job("job_last")
    with sessions.begin() as session:
        taken = store.take_due(session, 8)
    assert sorted(each.event for each in taken) == ["job.running", "job.succeeded", "job.succeeded"]


def test_the_secret_is_in_no_log_and_no_repr(
    subscribe: Subscribe, run_job: RunJob, courier: Courier, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    webhook = subscribe()
    run_job()
    with sessions() as session:
        (outgoing,) = store.take_due(session, 1)
    courier.send_due()
    secret = webhook.secret.removeprefix("whsec_")
    assert secret not in repr(outgoing)
    assert secret not in str([record.__dict__ for record in caplog.records])
