"""Two versions of the service on one database: what the newer one writes breaks nothing of this one."""

from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from celery import Celery
from sqlalchemy import Engine, text

from app.db import Sessions, at_head, migrations_config, newest_migration, upgrade
from app.errors import NotMigrated
from app.jobs.doorbell import TASK
from app.jobs.models import AttemptRow, JobRow
from app.jobs.service import JobService
from app.jobs.views import read_outcome, read_state
from app.settings import ServerSettings, Settings
from modelpress.contract.job import AttemptOutcome, State
from modelpress.contract.recipe import Recipe
from tests.support.api import api
from tests.support.supervising import supervisor_of
from tests.support.waiting import wait_for
from workers.celery_app import run_worker
from workers.tasks import register

NEWER = [
    """UPDATE jobs SET recipe = recipe || '{"novelty": 1}'""",
    """UPDATE jobs SET recipe = jsonb_set(recipe, '{method}', '{"name": "magic", "wand": 3}')""",
    """UPDATE jobs SET source = source || '{"novelty": 1}'""",
    """UPDATE jobs SET source = source - 'parameters'""",
    """UPDATE jobs SET metrics = '{"before": {}, "after": {}}'""",
    """UPDATE jobs SET sweep = '[{"target_ratio": 2}]'""",
    """UPDATE jobs SET state = 'failed', error = '{"code": "from_the_future", "novelty": 1}'""",
    """UPDATE jobs SET stage = 'polish'""",
    """INSERT INTO attempts (job_id, number, worker, started_at, outcome)
       SELECT id, 1, 'w', now(), 'forwarded' FROM jobs""",
    """INSERT INTO attempts (job_id, number, worker, started_at, resumed)
       SELECT id, 1, 'w', now(), '{"layer": 3}' FROM jobs""",
]


@pytest.fixture
def newer_schema(engine: Engine) -> Iterator[Engine]:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": newest_migration()})


@pytest.mark.parametrize("statement", NEWER)
def test_a_row_of_a_newer_version_breaks_no_page(
    service: JobService, sessions: Sessions, tiny: dict[str, Any], statement: str
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    with sessions.begin() as session:
        session.execute(text(statement))
    assert [job.id for job in service.page(None, 20).jobs] == [job_id]
    assert service.get(job_id).model_dump_json(warnings=False)


def test_a_state_and_an_outcome_of_a_newer_version_are_read_as_what_comes_nearest() -> None:
    assert read_state(JobRow(state="resting")) is State.RUNNING
    assert read_outcome(AttemptRow(outcome="forwarded")) is AttemptOutcome.LOST


def test_a_job_that_a_newer_version_has_posted_does_not_hold_up_the_others(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = service.submit(Recipe.model_validate(tiny)).id
    with sessions.begin() as session:
        session.execute(text("""UPDATE jobs SET recipe = recipe || '{"novelty": 1}'"""))
    known = service.submit(Recipe.model_validate(tiny)).id
    supervisor = supervisor_of(settings, sessions)
    monkeypatch.setattr(supervisor, "attempt", lambda claim, lease: None)
    supervisor.look()
    assert service.get(known).attempt == 1
    assert (service.get(newer).state, service.get(newer).attempt) == (State.QUEUED, 0)


def test_a_message_of_a_newer_version_rings_all_the_same() -> None:
    class Ears:
        def run(self) -> None:
            heard.append(True)

    heard: list[bool] = []
    celery = Celery(set_as_current=False)
    register(celery, Ears())
    celery.tasks[TASK]("job_a", "more", novelty=1)
    assert heard == [True]


def test_a_newer_schema_is_used_and_left_as_it_is(newer_schema: Engine) -> None:
    assert at_head(newer_schema)
    upgrade(newer_schema)
    with newer_schema.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


@pytest.fixture(params=["-1", "-5", "base"])
def older_schema(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database that an older version has left, before somebody has run `modelpress migrate`."""
    config = migrations_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, request.param)
    engine.dispose()  # what its connections have prepared is of the newer schema
    yield engine
    upgrade(engine)
    engine.dispose()


def test_an_api_on_an_older_schema_says_so_in_place_of_failing(
    settings: ServerSettings, older_schema: Engine, tiny: dict[str, Any]
) -> None:
    with api(settings) as client:
        posted = client.post("/jobs", json=tiny)
        answers = [client.get(path) for path in ("/jobs", "/jobs/job_a", "/team", "/uploads", "/webhooks", "/workers")]
        hook = client.post("/webhooks", json={"url": "https://example.com/hook"})
        ready = wait_for(lambda: client.get("/readyz").json().get("type"))
    found = {(answer.request.url.path, answer.status_code) for answer in (posted, hook, *answers)}
    assert not [each for each in found if each[1] >= 500 and each[1] != 503]
    assert ready == "/problems/not_migrated"


def test_a_worker_on_an_older_schema_does_not_begin(settings: ServerSettings, older_schema: Engine) -> None:
    with pytest.raises(NotMigrated, match="modelpress migrate"):
        run_worker(settings)
