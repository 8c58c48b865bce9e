"""What the supervisor makes of children that do not do what they should. Each is a real process."""

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.db import Sessions
from app.jobs import reaper, store
from app.jobs.service import JobService
from app.jobs.store import Claim
from app.keys.callers import anyone
from app.logs import add_context
from app.settings import Settings
from app.storage import Storage
from app.storage.registry import open_storage
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import AttemptOutcome, State
from modelpress.contract.recipe import Recipe
from tests.support.cages import has_landlock
from tests.support.children import write_children
from tests.support.results import COMPARISON
from tests.support.supervising import supervisor_of
from tests.support.unreliable import Demoted, Unreliable
from tests.support.waiting import PATIENCE_SECONDS
from workers import child, container
from workers.messages import LONGEST_TEXT, DoneReport, ErrorReport, MetricReport, ProgressReport
from workers.supervisor import Published

FETCHED = "print(json.dumps({'event': 'done', 'model_path': '/model', 'texts': {}, 'text_revisions': {}}))"
DONE = DoneReport(package=Path("/package"), achieved_ratio=1.3, metrics=COMPARISON)
CHILDREN = {
    "hangs": "time.sleep(600)",
    "is_killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "sys.stderr.write('a last word\\n'); sys.exit(7)",
    "says_nothing": "pass",
    "finishes": f"print({DONE.model_dump_json()!r}.replace('/package', os.getcwd()))",
    "offers_what_is_not_its_own": f"print({DONE.model_dump_json()!r})",
    "finds_the_disk_full": (
        "print(json.dumps({'event': 'error', 'code': 'disk_full', 'message': 'the disk is full'})); sys.exit(1)"
    ),
    "needs_memory": (
        "told = str(json.loads(sys.stdin.readline())['memory_bytes']);"
        "print(json.dumps({'event': 'error', 'code': 'out_of_memory', 'message': told})); sys.exit(1)"
    ),
    "reads_a_secret": (
        "told = 'read'\ntry: open(os.getcwd() + '/../../../../secret')\nexcept OSError as error: told = str(error)\n"
        "print(json.dumps({'event': 'error', 'code': 'internal_error', 'message': told})); sys.exit(1)"
    ),
    "fails": ("print(json.dumps({'event': 'error', 'code': 'no_tokenizer', 'message': 'no'})); sys.exit(1)"),
    "tells_where_tasks_lie": (
        "told = str(json.loads(sys.stdin.readline())['tasks_dir']);"
        "print(json.dumps({'event': 'error', 'code': 'internal_error', 'message': told})); sys.exit(1)"
    ),
}


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts programs in the place of the computing child and of the one that fetches."""

    def put(name: str, fetching: str = FETCHED) -> None:
        monkeypatch.setattr(child, "ROOT", write_children(tmp_path / "path", CHILDREN[name], fetching))

    return put


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("hangs", "timed_out"),
        ("is_killed", "compute_killed"),
        ("crashes", "compute_crashed"),
        ("says_nothing", "internal_error"),
        ("fails", "no_tokenizer"),
        ("offers_what_is_not_its_own", "internal_error"),
    ],
)
def test_a_child_that_ends_badly_fails_the_last_attempt_with_a_code(
    service: JobService,
    settings: Settings,
    sessions: Sessions,
    tiny: dict[str, Any],
    children: Any,
    name: str,
    code: str,
) -> None:
    patience = 1.0 if name == "hangs" else PATIENCE_SECONDS
    changes = {"max_attempts": 1, "job_timeout_seconds": patience, "stop_grace_seconds": 0.0}
    settings = settings.model_copy(update=changes)
    service.settings = settings
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children(name)
    storage = open_storage(settings.artifacts_url)
    supervisor_of(settings, sessions, storage).run()
    job = service.get(job_id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == code


def test_a_child_is_told_where_the_tasks_of_the_operator_lie(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"tasks_dir": tmp_path / "tasks"})
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("tells_where_tasks_lie")
    storage = open_storage(settings.artifacts_url)
    supervisor_of(settings, sessions, storage).run()
    job = service.get(job_id)
    assert job.error is not None
    assert job.error.message == str(tmp_path / "tasks")


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("fetching", [FETCHED, CHILDREN["reads_a_secret"]], ids=["computing", "fetching"])
def test_no_child_reads_what_is_the_services_own(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any, fetching: str
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("reads_a_secret", fetching)
    settings.data_dir.mkdir()
    (settings.data_dir / "secret").write_text("a password")
    supervisor_of(settings, sessions).run()
    error = service.get(job_id).error
    assert error is not None
    assert "Permission denied" in error.message


def test_a_passing_fault_puts_the_job_back_while_attempts_are_left(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("is_killed")
    storage = open_storage(settings.artifacts_url)
    supervisor_of(settings, sessions, storage).run()
    assert service.get(job_id).state is State.QUEUED


def test_a_new_attempt_removes_the_scratch_of_the_earlier_ones_and_not_their_results(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any
) -> None:
    settings = settings.model_copy(update={"retry_delay_seconds": 0.0})
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("is_killed")
    supervisor = supervisor_of(settings, sessions)
    supervisor.run()
    attempt = settings.work_dir / job_id / "1"
    for name in ("home", "inspect"):
        (attempt / name).mkdir(parents=True, exist_ok=True)
        (attempt / name / "left").touch()
    supervisor.run()
    assert service.get(job_id).attempt == 2
    assert [path.name for path in attempt.iterdir()] == ["inspect"]


def published_result(
    sessions: Sessions, storage: Storage, job_id: str, directory: Path, *, missed: str | None = None
) -> tuple[Claim, Published]:
    """The job as a worker holds it that has just published a package of one file."""
    with sessions.begin() as session:
        claim = store.claim(session, job_id, "worker", 60.0)
    assert claim is not None
    package = directory / "package"
    package.mkdir()
    (package / "config.json").write_text("{}")
    done = DoneReport(package=package, achieved_ratio=1.3, metrics=COMPARISON, missed=missed)
    return claim, Published(done, storage.publish(job_id, claim.attempt, package))


@pytest.mark.parametrize("committed", [True, False])
def test_a_result_is_kept_once_although_the_database_fails_while_it_is_written(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], tmp_path: Path, committed: bool
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    storage = open_storage(settings.artifacts_url)
    claim, published = published_result(sessions, storage, job_id, tmp_path)
    unreliable: Any = Unreliable(sessions, committed=committed)
    supervisor = supervisor_of(settings, unreliable, storage)
    assert supervisor.conclude_for_certain(claim, published) == AttemptOutcome.SUCCEEDED
    assert service.get(job_id).state is State.SUCCEEDED
    assert [each.file.name for each in service.artifacts(job_id)] == ["config.json"]
    assert storage.exists(job_id, claim.attempt, "config.json")


@pytest.mark.parametrize("committed", [True, False])
def test_a_result_that_misses_the_gate_fails_the_job_and_is_kept(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], tmp_path: Path, committed: bool
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    storage = open_storage(settings.artifacts_url)
    claim, published = published_result(sessions, storage, job_id, tmp_path, missed="twice the perplexity")
    unreliable: Any = Unreliable(sessions, committed=committed)
    supervisor = supervisor_of(settings, unreliable, storage)
    assert supervisor.conclude_for_certain(claim, published) == AttemptOutcome.FAILED
    job = service.get(job_id)
    assert (job.state, job.metrics, job.achieved_ratio) == (State.FAILED, COMPARISON, 1.3)
    assert job.error is not None
    assert (job.error.code, job.error.message, job.error.retryable) == ("quality_gate", "twice the perplexity", False)
    assert {"artifacts", "checkpoint"} <= job.links.keys()
    assert storage.exists(job_id, claim.attempt, "config.json")


def test_a_nul_in_what_a_model_says_does_not_reach_the_database() -> None:
    report = ErrorReport(code=FailureCode.INVALID_MODEL, message="the tensor \0 is missing")
    assert "\0" not in report.message


def test_half_a_surrogate_pair_in_what_a_model_says_does_not_reach_the_database() -> None:
    assert MetricReport(step=1, name="a\ud800", value=None).name == "a\ufffd"


def test_what_a_process_says_is_cut_to_what_anybody_reads() -> None:
    assert len(ProgressReport(stage="x" * 1_000_000, fraction=0.5).stage) == LONGEST_TEXT


def test_a_result_outlives_a_database_that_only_answers_reads(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    storage = open_storage(settings.artifacts_url)
    claim, published = published_result(sessions, storage, job_id, tmp_path)
    demoted: Any = Demoted(sessions)
    assert supervisor_of(settings, demoted, storage).conclude_for_certain(claim, published) == AttemptOutcome.SUCCEEDED
    assert service.get(job_id).state is State.SUCCEEDED


def test_a_disk_that_is_full_when_the_result_is_stored_is_reported_as_one(
    service: JobService,
    settings: Settings,
    sessions: Sessions,
    tiny: dict[str, Any],
    children: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings = settings.model_copy(update={"max_attempts": 1, "storage_patience_seconds": 0.0})
    service.settings = settings
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("finishes")
    storage = open_storage(settings.artifacts_url)
    monkeypatch.setattr(storage, "publish", full)
    supervisor_of(settings, sessions, storage).run()
    job = service.get(job_id)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("disk_full", True)


def test_an_outage_that_costs_the_lease_costs_no_attempt(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    supervisor = supervisor_of(settings, sessions)
    job_id = service.submit(Recipe.model_validate(tiny)).id
    for _ in range(2 * settings.max_attempts):
        claim = supervisor.claim()
        assert claim is not None
        with sessions.begin() as session:
            session.execute(text("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 second'"))
            (reaped,) = reaper.reap(session, 0.0)
        assert reaped.state is State.QUEUED
        assert supervisor.conclude_for_certain(claim, None) is AttemptOutcome.LOST
    assert {attempt.outcome for attempt in service.get(job_id).attempts} == {AttemptOutcome.RELEASED}


def test_an_attempt_is_given_back_once(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    supervisor = supervisor_of(settings, sessions)
    service.submit(Recipe.model_validate(tiny))
    claim = supervisor.claim()
    assert claim is not None
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 second'"))
        reaper.reap(session, 0.0)
    for _ in range(3):
        supervisor.conclude_for_certain(claim, None)
    with sessions() as session:
        assert session.scalar(text("SELECT attempts_left FROM jobs")) == settings.max_attempts


def test_a_claim_whose_answer_was_lost_is_handed_back(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    unreliable: Any = Unreliable(sessions, committed=True)
    supervisor = supervisor_of(settings, unreliable)
    with pytest.raises(OperationalError):
        supervisor.run()
    assert service.get(job_id).state is State.QUEUED
    with sessions() as session:
        assert session.scalar(text("SELECT attempts_left FROM jobs")) == settings.max_attempts


def test_a_job_waits_for_a_full_disk_without_being_charged_and_says_so(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any
) -> None:
    settings = settings.model_copy(update={"max_attempts": 1, "retry_delay_seconds": 0.0})
    service.settings = settings
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("finds_the_disk_full")
    supervisor = supervisor_of(settings, sessions)
    for _ in range(3):
        supervisor.run()
    job = service.get(job_id)
    assert (job.state, job.attempt, job.detail) == (State.QUEUED, 3, "waits, since the disk is full")
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.RELEASED] * 3
    supervisor.settings = settings.model_copy(update={"storage_patience_seconds": 0.0})
    supervisor.run()
    job = service.get(job_id)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "disk_full")


def test_a_job_is_not_begun_that_does_not_fit_on_the_disk(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any
) -> None:
    settings = settings.model_copy(update={"reserved_disk_bytes": 2**60})
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("hangs")
    supervisor_of(settings, sessions).run()
    job = service.get(job_id)
    assert job.state is State.QUEUED
    assert job.detail is not None
    assert job.detail.startswith("waits, since the worker's disk has")
    assert not list(settings.work_dir.glob("*/*"))


def test_a_job_that_ran_out_of_memory_is_tried_once_more_with_less(
    service: JobService, settings: Settings, sessions: Sessions, tiny: dict[str, Any], children: Any
) -> None:
    settings = settings.model_copy(update={"max_attempts": 1, "memory_bytes": 2_000_000})
    service.settings = settings
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("needs_memory")
    supervisor = supervisor_of(settings, sessions)
    supervisor.run()
    assert service.get(job_id).state is State.QUEUED
    supervisor.run()
    job = service.get(job_id)
    assert job.error is not None
    assert (job.state, job.attempt) == (State.FAILED, 2)
    assert (job.error.code, job.error.message) == ("out_of_memory", "1000000")


def test_a_child_that_the_system_kills_for_want_of_memory_is_out_of_memory(
    service: JobService,
    settings: Settings,
    sessions: Sessions,
    tiny: dict[str, Any],
    children: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills = iter(range(1000))
    monkeypatch.setattr(container, "oom_kills", lambda: next(kills))
    job_id = service.submit(Recipe.model_validate(tiny)).id
    children("is_killed")
    supervisor = supervisor_of(settings, sessions)
    supervisor.run()
    supervisor.run()
    job = service.get(job_id)
    assert job.error is not None
    assert job.error.code == "out_of_memory"


def test_what_a_child_logs_carries_its_job_its_attempt_and_the_request_that_posted_it(
    service: JobService,
    settings: Settings,
    sessions: Sessions,
    tiny: dict[str, Any],
    children: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(add_context)
    job_id = service.of(replace(anyone(), request_id="request-1")).submit(Recipe.model_validate(tiny)).id
    children("crashes")
    supervisor_of(settings, sessions).run()
    (said,) = [record.__dict__ for record in caplog.records if getattr(record, "line", None) == "a last word"]
    assert (said["job_id"], said["attempt"], said["request_id"]) == (job_id, 1, "request-1")
