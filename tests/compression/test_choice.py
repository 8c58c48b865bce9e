"""Trying the methods on a model and judging them on text that they did not see."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelpress.spec.errors import CompressionError
from modelpress.spec.methods import MethodOptions
from modelpress.spec.methods.auto import AUTO
from modelpress.spec.plan import Plan
from modelpress.spec.sizes import Candidate
from tests.support.compression import calibration, open_initialised
from tests.support.planning import plan_of, range_of
from workers.compression import choice
from workers.compression.choice import TRIED_TOKENS, Trial, split_calibration, trials
from workers.compression.evaluation.fidelity import Perplexity, perplexity
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress

RATIO = 1.5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    open_initialised("llama", path)
    return path


def candidates(model: StreamedModel, ratio: float = RATIO) -> tuple[MethodOptions, ...]:
    return AUTO.candidates(model.inventory, ratio, AUTO.options())


def ways(model: StreamedModel) -> tuple[Candidate, ...]:
    return tuple(Candidate(method, RATIO, 16) for method in candidates(model))


def tried(model: StreamedModel, ids: Tensor, **options: Any) -> Iterator[Trial]:
    return trials(model, ways(model), ids, **options)


def test_every_method_that_reaches_the_ratio_is_tried(directory: Path) -> None:
    model = StreamedModel.open(directory)
    found = [trial.candidate.method for trial in tried(model, calibration())]
    assert found == list(candidates(model))
    assert {method.name for method in found} == {"low_rank", "width_low_rank", "width", "fusion"}


def test_a_method_that_does_not_reach_the_ratio_is_not_tried(directory: Path) -> None:
    model = StreamedModel.open(directory)
    names = {method.name for method in candidates(model, range_of(model.inventory, "width").highest * 1.05)}
    assert "width" not in names
    assert "low_rank" in names


def test_no_method_that_removes_blocks_is_tried_where_their_place_counts(directory: Path) -> None:
    model = StreamedModel.open(directory)
    model.inventory = dataclasses.replace(model.inventory, blocks_stay="it is so")
    assert {method.name for method in candidates(model)} == {"low_rank", "width_low_rank", "width"}


def test_a_method_is_judged_by_text_that_was_kept_back(directory: Path) -> None:
    model, ids = StreamedModel.open(directory), calibration()
    seen, kept_back = split_calibration(ids)
    parts: list[CompressedPart] = []
    for _ in compress(model, plan_of(model.inventory, "width", RATIO), seen, parts):
        pass
    expected = perplexity(EditedModel(model, parts), kept_back).value
    found = {trial.candidate.method.name: trial.perplexity for trial in tried(model, ids)}
    assert found["width"] == expected


def test_no_sequence_both_shows_and_judges_and_both_come_from_all_over_the_text() -> None:
    ids = torch.arange(32)[:, None].expand(32, 256)
    seen, kept_back = (set(some[:, 0].tolist()) for some in split_calibration(ids))
    assert not seen & kept_back
    for some in (seen, kept_back):
        assert min(some) < 8
        assert max(some) >= 24


def test_a_trial_takes_a_small_part_of_a_long_text() -> None:
    seen, kept_back = split_calibration(torch.zeros(400, 1024))
    assert seen.numel() == kept_back.numel() == TRIED_TOKENS


def test_of_a_single_sequence_one_half_judges(directory: Path) -> None:
    one: Tensor = calibration()[:1]
    assert len(list(tried(StreamedModel.open(directory), one))) == 4


@pytest.mark.parametrize(
    "error",
    [
        CompressionError("it does not fit"),
        torch.linalg.LinAlgError("singular"),
        RuntimeError("U[25,25] is zero"),
        ZeroDivisionError("float division by zero"),
    ],
)
def test_a_method_that_fails_on_the_model_is_left_out(
    error: Exception, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_width(model: object, plan: Plan, *arguments: Any, **options: Any) -> Iterator[int]:
        if plan.method == "width":
            raise error
        return compress(StreamedModel.open(directory), plan, *arguments, **options)

    monkeypatch.setattr(choice, "compress", refuse_width)
    found = [trial.candidate.method.name for trial in tried(StreamedModel.open(directory), calibration())]
    assert found == ["low_rank", "width_low_rank", "fusion"]


@pytest.mark.parametrize("left", [math.nan, math.inf])
def test_a_method_that_leaves_no_finite_perplexity_is_left_out(
    left: float, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_each = iter([left, 30.0, 20.0, left])
    monkeypatch.setattr(choice, "perplexity", lambda *_: Perplexity(next(left_by_each), 60))
    monkeypatch.setattr(choice, "_compress_by", lambda *_: [])
    found = [trial.perplexity for trial in tried(StreamedModel.open(directory), calibration())]
    assert found == [30.0, 20.0]


def test_the_parts_of_each_trial_go_into_a_store_of_its_own(directory: Path) -> None:
    stores: list[list[CompressedPart]] = []

    def store() -> list[CompressedPart]:
        stores.append([])
        return stores[-1]

    found = list(tried(StreamedModel.open(directory), calibration(), store=store))
    assert len(stores) == len(found) == 4
    assert all(stores)
