"""A job that names tasks of lm-eval: what its metrics say of them, and how it fails where they cannot be asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modelpress.contract.job import Metrics, TaskMetric, TaskResult
from modelpress.spec.methods.width import WidthOptions
from tests.support.jobs import done, last_report
from tests.support.lm_tasks import NAME, write_task
from workers.messages import Assignment, ErrorReport
from workers.stages import evaluate, memory, tasks

FOUND = {"acc": TaskMetric(value=0.25, stderr=0.1, higher_is_better=True)}


def naming(assignment: Assignment, *names: str, **recipe: Any) -> Assignment:
    """Return the same job with tasks."""
    evaluation = assignment.recipe.evaluation.model_copy(update={"tasks": names, "task_limit": 6})
    return assignment.model_copy(
        update={"recipe": assignment.recipe.model_copy(update={"evaluation": evaluation, **recipe})}
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Tasks that are had everywhere and answered without being asked; which names each model was asked."""
    calls: list[tuple[str, str]] = []

    def ask(context: Any, directory: Path, model: Any, names: Any) -> Mapping[str, Mapping[str, TaskResult]]:
        found = {name: {name: TaskResult(version="1", examples=6, shots=0, metrics=FOUND)} for name in names}
        for name in names:
            calls.append((name, directory.name))
            tasks.store_result(context, directory, name, found[name])
        return found

    monkeypatch.setattr(tasks, "require_library", lambda _: None)
    monkeypatch.setattr(tasks, "require_data", lambda _: None)
    monkeypatch.setattr(tasks, "LIBRARY", "torch")
    monkeypatch.setattr(tasks, "run_tasks", ask)
    return calls


def test_without_the_library_a_job_fails_before_anything_is_computed(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "LIBRARY", "a_library_that_nobody_has")
    error = last_report(naming(assignment, NAME))
    assert isinstance(error, ErrorReport)
    assert (error.code, error.stage) == ("missing_extra", "inspect")
    assert "modelpress[tasks]" in error.message
    assert not any(assignment.work_dir.rglob("*.json"))


def test_without_tasks_no_library_is_needed(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "LIBRARY", "a_library_that_nobody_has")
    metrics = done(assignment).metrics
    assert (metrics.after.tasks, metrics.after.tasks_skipped) == ({}, None)


def test_original_and_result_are_asked_and_the_report_says_what_they_came_to(
    assignment: Assignment, asked: list[tuple[str, str]]
) -> None:
    finished = done(naming(assignment, "a", "b", method=WidthOptions()))
    assert asked == [(name, of) for of in ("model", "safetensors") for name in ("a", "b")]
    metrics = finished.metrics
    for model in (metrics.before, metrics.after):
        assert list(model.tasks) == ["a", "b"]
    report = json.loads((finished.package / "compression_report.json").read_text())
    assert report["metrics"]["after"]["tasks"]["a"] == metrics.after.tasks["a"].model_dump()
    assert "| `a` | 1 | 0 | 6 | `acc` | 0.2500 ± 0.1000 |" in (finished.package / "README.md").read_text()


def test_a_model_that_does_not_fit_is_not_asked_and_says_why(
    assignment: Assignment, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "holds", lambda *_: False)
    metrics = done(naming(assignment, "a")).metrics
    assert asked == []
    for model in (metrics.before, metrics.after):
        assert (model.tasks, model.tasks_skipped) == ({}, tasks.TOO_LARGE)


def test_several_ratios_ask_the_original_once(assignment: Assignment, asked: list[tuple[str, str]]) -> None:
    first, second = done(naming(assignment, "a", target_ratio=(1.2, 1.3))).sweep
    assert asked == [("a", "model"), ("a", "safetensors"), ("a", "safetensors")]
    assert first.metrics.before.tasks == second.metrics.before.tasks


def test_a_later_attempt_asks_only_what_an_earlier_one_did_not(
    assignment: Assignment, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "write_probe", lambda *_: 1 / 0)
    job = naming(assignment, "a")
    assert isinstance(last_report(job), ErrorReport)
    monkeypatch.undo()
    monkeypatch.setattr(tasks, "require_library", lambda _: None)
    monkeypatch.setattr(tasks, "LIBRARY", "torch")
    done(job.model_copy(update={"attempt": 2}))
    assert asked == [("a", "model"), ("a", "safetensors")]


def in_the_folder(assignment: Assignment, folder: Path) -> Assignment:
    return naming(assignment, NAME).model_copy(update={"tasks_dir": folder})


def test_a_task_of_the_operator_is_asked_of_both_by_the_library_itself(assignment: Assignment, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")
    finished = done(in_the_folder(assignment, write_task(tmp_path / "tasks")))
    for model in (finished.metrics.before, finished.metrics.after):
        check(model)
    report = json.loads((finished.package / "compression_report.json").read_text())
    assert "lm_eval" in report["reproducibility"]["versions"]


def check(model: Metrics) -> None:
    result = model.tasks[NAME]
    assert (result.version, result.examples, result.shots) == ("2.0", 6, 0)
    assert result.metrics["acc"].value is not None
    assert result.metrics["acc"].value * 6 == pytest.approx(round(result.metrics["acc"].value * 6))


def test_a_task_without_its_data_fails_the_job_before_it_compresses(assignment: Assignment, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")
    error = last_report(in_the_folder(assignment, write_task(tmp_path / "tasks", data="nowhere.json")))
    assert isinstance(error, ErrorReport)
    assert (error.code, error.stage) == ("task_data_missing", "calibrate")
    assert NAME in error.message
