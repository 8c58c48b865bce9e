"""How much of the whole job a stage is."""

from pathlib import Path
from typing import Any

import pytest

from modelpress.contract.recipe import Recipe
from tests.support.jobs import context_of
from workers.messages import FETCH_SHARE, Assignment, Expected
from workers.stages import context as module
from workers.stages.context import Context
from workers.stages.registry import STAGES
from workers.stages.stage import Schedule
from workers.stages.workbench import Workbench


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"model": "local:model", "target_ratio": 1.3, **sections})


@pytest.mark.parametrize("sections", [{}, {"distillation": {}}, {"target_ratio": [1.2, 1.3, 1.5], "method": "fusion"}])
def test_all_stages_and_the_fetching_are_the_whole(sections: dict[str, Any]) -> None:
    asked = recipe(**sections)
    schedule = Schedule.of(asked, STAGES)
    shares = (schedule.share(stage.name, turn) for stage in STAGES for turn in range(len(asked.ratios)))
    assert sum(shares) + FETCH_SHARE == pytest.approx(1)


def test_stages_that_run_once_take_nothing_for_a_second_ratio() -> None:
    schedule = Schedule.of(recipe(target_ratio=[1.2, 1.3]), STAGES)
    assert all(schedule.share(stage.name, 1) == 0 for stage in STAGES if stage.once)
    assert schedule.share("compress", 1) == schedule.share("compress", 0) > 0


def test_progress_begins_with_the_fetching_and_ends_with_the_last_stage() -> None:
    schedule = Schedule.of(recipe(target_ratio=[1.2, 1.3]), STAGES)
    assert schedule.before(0, ()) == pytest.approx(FETCH_SHARE)
    assert schedule.before(1, [stage.name for stage in STAGES]) == pytest.approx(1)


def test_what_a_stage_asks_for_again_is_made_once_for_each_ratio(tmp_path: Path) -> None:
    assignment = Assignment(
        job_id="job", attempt=1, recipe=recipe(target_ratio=[1.2, 1.3]), model_path=tmp_path, texts={},
        work_dir=tmp_path, device="cpu", threads=1,
    )  # fmt: skip
    made = iter(range(10))
    first = context_of(assignment).at(0)
    second = first.at(1)
    assert [context.hold("plan", lambda: next(made)) for context in (first, first, second, second)] == [0, 0, 1, 1]


def test_a_part_of_a_stage_reports_its_own_progress_as_that_part(tmp_path: Path) -> None:
    assignment = Assignment(
        job_id="job", attempt=1, recipe=recipe(), model_path=tmp_path, texts={}, work_dir=tmp_path, device="cpu",
        threads=1,
    )  # fmt: skip
    reports: list[Any] = []
    context = context_of(assignment, reports.append)
    context.stage = "evaluate"
    for part, fraction in ((context, 0.25), (context.within(0.25, 0.75), 0.0), (context, 0.5)):
        part.progress(fraction)
    context.within(0.25, 0.75).progress(0.5)
    quarter, begun, half, halfway = (report.fraction for report in reports)
    assert (quarter, half) == (begun, halfway)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the context, which stands until a test moves it."""
    monkeypatch.setattr(module, "time", clock := Clock())
    return clock


def test_what_was_finished_before_does_not_count_as_pace(tmp_path: Path, clock: Clock) -> None:
    assignment = Assignment(
        job_id="job", attempt=2, recipe=recipe(distillation={}), model_path=tmp_path, texts={}, work_dir=tmp_path,
        device="cpu", threads=1,
    )  # fmt: skip
    reports: list[Any] = []
    context = context_of(assignment, reports.append)
    context.stage = "distill"
    context.started = clock.now
    context.progress(0.0)
    context.resumed()
    context.progress(0.5)
    for step in range(1, 26):
        clock.now = 4.0 * step
        context.progress(0.5 + 0.004 * step)
    assert reports[-1].stage_seconds_left == pytest.approx(400.0)


def timed(tmp_path: Path, reports: list[Any], seconds: dict[str, float], *, measured: bool = True) -> Context:
    """Return the context of the first attempt at a job whose stages are expected to take these seconds."""
    assignment = Assignment(
        job_id="job", attempt=1, recipe=recipe(), model_path=tmp_path, texts={}, work_dir=tmp_path, device="cpu",
        threads=1, expected=Expected(seconds=seconds, measured=measured),
    )  # fmt: skip
    schedule = Schedule.of(assignment.recipe, STAGES, assignment.expected)
    return Context(assignment, Workbench(tmp_path, 1, "inputs"), reports.append, schedule)


def test_the_time_left_follows_from_what_jobs_like_this_one_have_taken(tmp_path: Path, clock: Clock) -> None:
    stages = [stage.name for stage in Schedule.of(recipe(), STAGES).stages]
    truth = {stage: 3.0 if number % 2 else 40.0 for number, stage in enumerate(stages)}
    reports: list[Any] = []
    context = timed(tmp_path, reports, truth)
    context.started = clock.now
    slower = 1.8
    for number, stage in enumerate(stages):
        context.stage = stage
        context.progress(0.0)
        left = slower * sum(truth[later] for later in stages[number:])
        assert number == 0 or left / 1.5 <= reports[-1].seconds_left <= left * 1.5
        clock.now += slower * truth[stage]
        context.results[stage] = tmp_path


def test_parts_of_a_stage_that_take_unequally_long_do_not_mislead(tmp_path: Path, clock: Clock) -> None:
    stages = [stage.name for stage in Schedule.of(recipe(), STAGES).stages]
    reports: list[Any] = []
    context = timed(tmp_path, reports, dict.fromkeys(stages, 40.0))
    context.started = clock.now
    later = stages[stages.index("evaluate") + 1 :]
    for stage in stages[: stages.index("evaluate")]:
        context.stage = stage
        context.progress(0.0)
        clock.now += 40.0
        context.results[stage] = tmp_path
    context.stage = "evaluate"
    entered = clock.now
    for passed, fraction in ((0.0, 0.0), (2.0, 0.6), (30.0, 0.9)):
        clock.now = entered + passed
        context.progress(fraction)
        assert reports[-1].stage_seconds_left == pytest.approx(40.0 - passed, abs=4.0)
        assert reports[-1].seconds_left == pytest.approx(40.0 - passed + 40.0 * len(later), rel=0.1)


def test_a_stage_that_is_slower_than_those_before_it_makes_the_rest_slower(tmp_path: Path, clock: Clock) -> None:
    stages = [stage.name for stage in Schedule.of(recipe(), STAGES).stages]
    reports: list[Any] = []
    context = timed(tmp_path, reports, dict.fromkeys(stages, 40.0))
    context.stage, context.started = stages[0], clock.now
    context.progress(0.0)
    clock.now = 30.0
    context.progress(0.5)
    assert reports[-1].stage_seconds_left == pytest.approx(30.0, abs=1.0)
    clock.now = 80.0
    context.progress(0.9)
    assert reports[-1].seconds_left >= 40.0 * (len(stages) - 1)


def test_what_a_recipe_alone_tells_gives_way_to_the_progress_of_the_stage(tmp_path: Path, clock: Clock) -> None:
    stages = [stage.name for stage in Schedule.of(recipe(), STAGES).stages]
    reports: list[Any] = []
    context = timed(tmp_path, reports, dict.fromkeys(stages, 10.0), measured=False)
    context.stage, context.started = stages[0], clock.now
    context.progress(0.0)
    assert reports[-1].seconds_left == pytest.approx(10.0 * len(stages))
    for step in range(1, 26):
        clock.now = 0.8 * step
        context.progress(0.01 * step)
    assert reports[-1].stage_seconds_left == pytest.approx(60.0)
    assert reports[-1].seconds_left > 60.0 + 2 * 10.0 * (len(stages) - 1)


def test_a_process_that_was_slow_to_start_is_on_a_slow_machine(tmp_path: Path, clock: Clock) -> None:
    stages = [stage.name for stage in Schedule.of(recipe(), STAGES).stages]
    reports: list[Any] = []
    context = timed(tmp_path, reports, {"start": 6.0, **dict.fromkeys(stages, 10.0)}, measured=False)
    context.stage, context.started, context.starting = stages[0], clock.now, 18.0
    context.progress(0.0)
    assert reports[-1].seconds_left > 2 * 10.0 * len(stages)
