"""A model on a card: every method leaves there what it leaves on the CPU, and no operation mixes the two.

The card is `tests.support.card`'s. It finds tensors on the wrong device, and what makes the host wait; it says nothing
about CUDA's arithmetic, which `bench/gpu` compares on a real card.
"""

from collections import Counter
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from modelpress.spec.codes import CODES
from modelpress.spec.methods import METHODS, PlanningMethod, planner_of
from modelpress.spec.plan import Plan
from modelpress.spec.steps import Quantise
from tests.support.card import CARD, TO_HOST, card
from tests.support.compression import TINY, calibration, open_initialised, sensitivities_of
from tests.support.models import logits_of
from workers.compression.evaluation.fidelity import compare
from workers.compression.math.rounding import rounded
from workers.compression.math.scales import Levels, search_scale, search_unit
from workers.compression.math.sensitivity import measure_all, site_errors
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.steps import RUNNERS
from workers.compression.steps.work import Work

METHODS_TRIED: dict[str, tuple[str, str, float, dict[str, Any]]] = {
    "low_rank": ("llama", "low_rank", 1.3, {}),
    "kronecker": ("llama", "kronecker", 1.3, {}),
    "width_low_rank": ("llama", "width_low_rank", 1.4, {}),
    "width-grouped": ("llama", "width", 1.3, {"key_value_heads": 1}),
    "fusion-distilled": ("gpt2", "fusion", 1.5, {"tokens": 64}),
    "fusegpt": ("llama", "fusegpt", 1.5, {"tokens": 64}),
    "svd": ("llama", "svd", 1.2, {}),
    "tqcompressor": ("gpt2", "tqcompressor", 1.112, {}),
    "experts": ("mixtral", "experts", 1.2, {}),
}
"""Model, method, ratio and options."""

SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
}
"""Sizes of models beside those of TINY."""


@dataclass(frozen=True)
class Made:
    plan: Plan
    parts: list[CompressedPart]


def test_every_method_is_tried() -> None:
    plans = {name for name, method in METHODS.items() if isinstance(method, PlanningMethod)}
    assert plans == {method for _, method, _, _ in METHODS_TRIED.values()} | {"quantisation"}  # tried below


def made(directory: Path, method: str, ratio: float, options: dict[str, Any], device: torch.device | str) -> Made:
    model = StreamedModel.open(directory, device=device)
    ids, chosen = calibration(), METHODS[method].options(**options)
    planner = planner_of(chosen)
    measured = measure_all(model, ids, tiled=planner.tiled(chosen))
    assert all(each.outputs.device.type == each.spectrum.device.type == "cpu" for each in measured.values())
    plan = planner.plan(model.inventory, ratio, chosen, site_errors(measured))
    parts: list[CompressedPart] = []
    for _ in compress(model, plan, ids, parts, sensitivities=measured):
        pass
    return Made(plan, parts)


def edited(directory: Path, found: Made) -> EditedModel:
    on_host = [
        CompressedPart(
            part.name,
            part.structures,
            {name: tensor.to("cpu") for name, tensor in part.tensors.items()},
            removed=part.removed,
        )
        for part in found.parts
    ]
    return EditedModel(StreamedModel.open(directory), on_host)


@pytest.mark.parametrize("case", METHODS_TRIED)
def test_a_method_leaves_on_a_card_what_it_leaves_on_the_cpu(case: str, tmp_path: Path) -> None:
    model_type, *asked = METHODS_TRIED[case]
    open_initialised(
        model_type, tmp_path, {**(TINY | SHAPES)[model_type], "num_hidden_layers": 2, "intermediate_size": 48}
    )
    expected = made(tmp_path, *asked, "cpu")
    with card():
        found = made(tmp_path, *asked, CARD)
    assert found.plan == expected.plan
    one, other = (logits_of(edited(tmp_path, each), calibration()) for each in (expected, found))
    assert (other - one).norm() < 0.02 * one.norm()


def test_matrices_are_rounded_on_a_card_as_on_the_cpu(tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path, {**TINY["llama"], "num_hidden_layers": 1})
    measured = sensitivities_of(model)
    step = Quantise(
        format="gguf", codes={site.name: "iq4_nl" for site in (model.inventory.embedding, *model.inventory.sites)}
    )

    def made_of(original: StreamedModel) -> EditedModel:
        edited = EditedModel(original)
        for part in RUNNERS[Quantise].run(step, Work(original, edited, calibration(), measured), ()):
            assert {tensor.device.type for tensor in part.tensors.values()} <= {"cpu"}
            edited.apply(part)
        return edited

    expected = logits_of(made_of(model), calibration())
    with card():
        found = logits_of(made_of(StreamedModel.open(tmp_path, device=CARD)), calibration()).to("cpu")
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_the_host_waits_for_a_rounding_as_often_however_many_columns_there_are() -> None:
    def waits_of(columns: int) -> Counter[str]:
        weight, second = torch.randn(4, columns), torch.eye(columns, dtype=torch.float64)
        with card() as waits:
            ours = weight.to(CARD), second.to(CARD)
            waits.clear()
            rounded(CODES["iq4_nl"], *ours, sweeps=0)
            return waits.copy()

    assert waits_of(32) == waits_of(96)


def test_the_host_waits_for_no_search_for_scales() -> None:
    code, groups, units = CODES["q6_k"], torch.randn(2, 16, 16), torch.rand(2)
    with card() as waits:
        levels, ours, theirs = Levels(code, CARD), groups.to(CARD), units.to(CARD)
        waits.clear()
        search_unit(levels, ours, torch.ones_like(ours), (-128, 127), torch.float16)
        search_scale(levels, ours[:, 0], torch.ones_like(ours[:, 0]), (-128, 127), theirs)
    assert not waits


def test_text_is_compared_on_a_card_as_on_the_cpu(tmp_path: Path) -> None:
    open_initialised("llama", tmp_path)
    ids = calibration()
    expected = compare(StreamedModel.open(tmp_path), [StreamedModel.open(tmp_path)], ids)
    with card() as waits:
        found = compare(StreamedModel.open(tmp_path, device=CARD), [StreamedModel.open(tmp_path, device=CARD)], ids)
    for one, other in zip(found, expected, strict=True):
        assert astuple(one) == pytest.approx(astuple(other), rel=1e-5)
    assert waits[TO_HOST] == 1  # all sums together
