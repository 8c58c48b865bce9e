"""What is read from a result of lm-eval."""

from typing import Any

from workers.compression.evaluation.task_scores import TaskMetric, scores_in


def result(entries: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A result as the library gives it, with what a test leaves out."""
    return {"results": entries, "versions": {}, "n-shot": {}, "higher_is_better": {}, "group_subtasks": {}} | more


def test_a_task_has_its_figures_and_what_they_were_found_with() -> None:
    entry = {"name": "a", "alias": "a", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": 0.1}
    told = {"versions": {"a": 2.0}, "n-shot": {"a": 5}, "higher_is_better": {"a": {"acc": True}}}
    found = scores_in(result({"a": entry}, **told))["a"]
    assert found.metrics == {"acc": TaskMetric(value=0.5, stderr=0.1, higher_is_better=True)}
    assert (found.version, found.examples, found.shots) == ("2.0", 3, 5)


def test_what_is_no_finite_number_is_none_and_filters_are_named() -> None:
    entry = {"name": "a", "alias": "a", "sample_len": 3, "f1,strict": float("nan"), "f1_stderr,strict": "N/A"}
    found = scores_in(result({"a": entry}, versions={"a": "Yaml"}))["a"]
    assert found.metrics.keys() == {"f1,strict"}
    measure = found.metrics["f1,strict"]
    assert (measure.value, measure.stderr, measure.higher_is_better) == (None, None, None)
    assert (found.version, found.shots) == (None, None)


def test_a_group_without_figures_of_its_own_stands_as_its_tasks() -> None:
    entries = {name: {"sample_len": 3, "acc,none": 0.5} for name in ("a", "b")} | {"both": {"name": "both"}}
    assert scores_in(result(entries, group_subtasks={"both": ["a", "b"]})).keys() == {"a", "b"}


def test_what_a_group_sums_up_is_left_out_at_any_depth() -> None:
    entries = {name: {"sample_len": 3, "acc,none": 0.5} for name in ("a", "b", "all", "alone")}
    children = {"all": ["a", "some"], "some": ["b"]}
    assert scores_in(result(entries, group_subtasks=children, groups={"all": {}})).keys() == {"all", "alone"}
