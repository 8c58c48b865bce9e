"""Estimates of what rounding costs, against what the rounded matrices really cost."""

from pathlib import Path

import pytest
import torch

from modelpress.spec.codes import CODES
from modelpress.spec.sizes import matrices
from modelpress.spec.steps import Quantise
from tests.support.compression import calibration, open_initialised, sensitivities_of
from workers.compression.math.fitting import Moments, matrix_of
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps import code_costs
from workers.compression.steps.code_costs import Costs, nearest
from workers.compression.steps.quantise import run
from workers.compression.steps.work import Work

FEWER = {"num_key_value_heads": 2, "vocab_size": 400}
NAMES = ("q8_0", "q5_0", "iq4_nl")


@pytest.fixture
def model(tmp_path: Path) -> StreamedModel:
    return open_initialised("llama", tmp_path, FEWER)


def estimated(model: StreamedModel) -> Costs:
    codes = {site.name: [CODES[name] for name in NAMES] for site in matrices(model.inventory)}
    ids = calibration(400)
    parts = code_costs.code_costs(EditedModel(model), ids, sensitivities_of(model), codes)
    return {site: costs for part in parts for site, costs in part.items()}


def true_cost(model: StreamedModel, site: str, code: str) -> float:
    """Return what a site of the first block costs after error feedback, on the inputs of the original."""
    name = site.removeprefix("model.layers.0.")
    ids = calibration(400)
    parts = list(run(Quantise(format="gguf", codes={site: code}), Work(model, EditedModel(model), ids, {}), ()))
    decoded = EditedModel(model, parts).read([f"{site}.weight"])[f"{site}.weight"]
    with model.block(0) as block:
        seen: list[torch.Tensor] = []
        block.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.run(block, 0, model.hidden(ids))
        error = matrix_of(block.get_submodule(name)) - decoded
    moments = Moments.empty(error.shape[1])
    moments.add(seen[0])
    lost = ((error @ (moments.inputs / moments.tokens)) * error).sum(-1)
    return 0.5 * float((lost * sensitivities_of(model)[site].outputs.square()).sum())


@pytest.mark.parametrize("code", NAMES)
@pytest.mark.parametrize("site", ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"])
def test_an_estimate_is_close_to_what_error_feedback_leaves(model: StreamedModel, site: str, code: str) -> None:
    assert estimated(model)[site][code] == pytest.approx(true_cost(model, site, code), rel=0.3)


def test_every_matrix_costs_more_with_fewer_bits(model: StreamedModel) -> None:
    costs = estimated(model)
    assert costs.keys() == {site.name for site in matrices(model.inventory)}
    assert all(0 < each["q8_0"] < each["q5_0"] < each["iq4_nl"] for each in costs.values())


def test_some_rows_stand_for_all(model: StreamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimated(model)
    monkeypatch.setattr(code_costs, "ROWS", 20)
    for site, costs in estimated(model).items():
        assert costs["iq4_nl"] == pytest.approx(whole[site]["iq4_nl"], rel=0.5)


@pytest.mark.parametrize("name", CODES)
def test_each_weight_goes_to_a_level_near_it(name: str) -> None:
    weight = torch.randn(4, 512, generator=torch.Generator().manual_seed(3))
    rounded = code_costs.nearest(CODES[name], weight, torch.rand(512))
    assert float((rounded - weight).norm() / weight.norm()) < 2.0 ** (1.5 - CODES[name].bits)


def test_the_smallest_weights_are_judged_by_powers_of_two_as_others_are() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    code, energies = CODES["mxfp4"], torch.ones(64)
    small = nearest(code, weight * 2.0**-20, energies)
    torch.testing.assert_close(small * 2.0**20, nearest(code, weight, energies))
