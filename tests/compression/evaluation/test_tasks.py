"""Tasks of lm-eval, run by the library itself: what a model comes to, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelpress.spec.errors import TaskDataMissing, TaskNotRunnable, UnknownTask
from tests.support.lm_tasks import EXAMPLES, NAME, write_group, write_task
from tests.support.text_models import amplify_blocks, write_tiny_model

pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")

from workers.compression.evaluation.tasks import load, scores


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a computing child: no network, and a cache that is empty at first."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    directory = write_tiny_model(tmp_path_factory.mktemp("model"))
    amplify_blocks(directory)
    yield AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def test_accuracy_is_that_of_the_likeliest_choices(opened: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = opened
    loaded = load([NAME], write_task(tmp_path / "tasks"))
    found = scores(loaded[NAME], model, tokenizer)[NAME]
    right = 0
    for number in range(EXAMPLES):
        sums = []
        for choice in ("fox", "dog", "quartz"):
            prompt = len(tokenizer(f"the quick brown {number}").input_ids)
            ids = torch.tensor([tokenizer(f"the quick brown {number} {choice}").input_ids])
            with torch.no_grad():
                predicted = model(ids[:, :-1]).logits.float().log_softmax(-1)[0]
            sums.append(predicted.gather(1, ids[0, 1:, None])[prompt - 1 :].sum().item())
        right += max(range(3), key=sums.__getitem__) == number % 3
    accuracy = right / EXAMPLES
    assert found.metrics["acc"].value == pytest.approx(accuracy)
    assert found.metrics["acc"].stderr == pytest.approx((accuracy * (1 - accuracy) / (EXAMPLES - 1)) ** 0.5)
    assert found.metrics["acc"].higher_is_better is True
    assert found.metrics.keys() == {"acc", "acc_norm"}
    assert (found.version, found.examples, found.shots) == ("2.0", EXAMPLES, 0)


def test_a_limit_takes_the_first_examples_and_asking_again_gives_the_same(
    opened: tuple[Any, Any], tmp_path: Path
) -> None:
    loaded = load([NAME], write_task(tmp_path / "tasks"))
    first, again = (scores(loaded[NAME], *opened, limit=5) for _ in range(2))
    assert first == again
    assert first[NAME].examples == 5


def test_a_group_that_sums_up_stands_for_its_tasks(opened: tuple[Any, Any], tmp_path: Path) -> None:
    found = scores(load(["words"], write_group(tmp_path / "tasks"))["words"], *opened)
    assert found.keys() == {"words"}
    assert found["words"].metrics.keys() == {"acc"}
    assert (found["words"].version, found["words"].examples) == ("3.0", 2 * EXAMPLES)


def test_a_name_that_nobody_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownTask, match="'nowhere'"):
        load(["nowhere"], write_task(tmp_path / "tasks"))


def test_data_that_lies_nowhere_is_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(TaskDataMissing, match=f"'{NAME}'.*HF_DATASETS_CACHE"):
        load([NAME], write_task(tmp_path / "tasks", data="nowhere.json"))


def test_data_of_the_hub_is_not_fetched(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks", dataset_path="org/name")
    with pytest.raises(TaskDataMissing, match="org/name"):
        load([NAME], folder)


def test_a_task_that_is_not_well_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(TaskNotRunnable, match="magic"):
        load([NAME], write_task(tmp_path / "tasks", output_type="magic"))


def test_a_task_that_runs_what_a_model_writes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskNotRunnable, match="code that the model writes"):
        load([NAME], write_task(tmp_path / "tasks", unsafe_code="true"))
