"""Orders that cost nothing: hidden units of an MLP that change places together."""

from pathlib import Path

import pytest
import torch

from modelpress.spec.architectures import architecture_named
from modelpress.spec.structures import Pivoted
from tests.support.compression import TINY, calibration, open_initialised
from tests.support.planning import factor_plan, factored, range_of, structures_of, uniform_plan
from workers.compression import structures
from workers.compression.math.sensitivity import Sensitivity
from workers.compression.math.symmetry import reorder_hidden_units
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel

REORDERED = sorted(name for name in TINY if architecture_named(name).mlp.stacked == 1)


def hidden_units(model: StreamedModel) -> int:
    return next(site.out_features for site in model.inventory.sites if site.free_outputs)


@pytest.mark.parametrize("model_type", REORDERED)
@torch.no_grad()
def test_a_block_computes_the_same_with_its_hidden_units_in_another_order(model_type: str, tmp_path: Path) -> None:
    model = open_initialised(model_type, tmp_path)
    hidden = model.hidden(calibration())
    with model.block(0) as block:
        entering = block.get_submodule(architecture_named(model_type).mlp.entering[0])
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        expected, before = model.run(block, 0, hidden), entering.state_dict()["weight"].clone()
        reorder_hidden_units(block, architecture_named(model_type).mlp, torch.randperm(hidden_units(model)))
        torch.testing.assert_close(model.run(block, 0, hidden), expected)
        assert not torch.equal(entering.state_dict()["weight"], before)


@pytest.mark.parametrize("model_type", REORDERED)
def test_the_matrix_that_enters_the_mlp_stores_no_order(model_type: str, tmp_path: Path) -> None:
    inventory = open_initialised(model_type, tmp_path).inventory
    plan = uniform_plan(inventory, range_of(inventory, "low_rank").highest)
    folded = {name for name, form in structures_of(plan).items() if isinstance(form, Pivoted) and form.folded}
    first = architecture_named(model_type).mlp.entering[0]
    assert folded == {f"{inventory.block_prefix}.{index}.{first}" for index in range(inventory.blocks)}


@pytest.mark.parametrize("others", ["whole", "factored"])
@pytest.mark.parametrize("model_type", REORDERED)
@torch.no_grad()
def test_the_rest_of_the_mlp_follows_folded_pivots(model_type: str, others: str, tmp_path: Path) -> None:
    """At all but the full rank of random weights a wrong order would show as an error of the size of the output."""
    model = open_initialised(model_type, tmp_path)
    mlp = architecture_named(model_type).mlp
    sites = mlp.entering[:1] if others == "whole" else mlp.sites
    planned = {
        f"{model.inventory.block_prefix}.{index}.{name}": Pivoted(31, folded=name == mlp.entering[0])
        for index in range(model.inventory.blocks)
        for name in sites
    }
    hidden = model.hidden(calibration())
    with model.block(0) as block:
        expected = model.run(block, 0, hidden) - hidden
    part = list(factored(model, factor_plan(model.inventory, planned), calibration()))[1]
    prefix = f"{model.inventory.block_prefix}.0."
    with model.block(0) as block:
        structures.replace(block, {name.removeprefix(prefix): form for name, form in part.structures.items()})
        block.load_state_dict({name.removeprefix(prefix): each for name, each in part.tensors.items()}, strict=False)
        found = model.run(block, 0, hidden) - hidden
    assert (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("model_type", REORDERED)
@torch.no_grad()
def test_folded_pivots_change_neither_the_model_nor_its_errors(model_type: str, tmp_path: Path) -> None:
    """A factorisation is the same wherever its pivots lie; all that is known of the hidden units must follow them."""
    original = uneven(open_initialised(model_type, tmp_path / "even"), tmp_path / "uneven")
    mlp, inventory = architecture_named(model_type).mlp, original.inventory
    generator = torch.Generator().manual_seed(0)
    known = {
        site.name: Sensitivity(torch.empty(0), torch.rand(site.out_features, generator=generator).double() + 0.05)
        for site in inventory.sites
    }
    found = {}
    for folded in (True, False):
        planned = {
            f"{inventory.block_prefix}.{index}.{name}": Pivoted(8, folded=folded and name == mlp.entering[0])
            for index in range(inventory.blocks)
            for name in mlp.sites
        }
        model = StreamedModel.open(tmp_path / "uneven", dtype=torch.float64)
        parts = list(factored(model, factor_plan(inventory, planned), calibration(), known))
        errors = {name: error for part in parts for name, error in part.errors.items()}
        found[folded] = EditedModel(StreamedModel.open(tmp_path / "uneven", dtype=torch.float64), parts), errors
    (one, errors), (other, same_errors) = found[True], found[False]
    torch.testing.assert_close(one.whole()(calibration()).logits, other.whole()(calibration()).logits)
    assert errors == pytest.approx(same_errors, rel=1e-3)


def uneven(model: StreamedModel, directory: Path) -> StreamedModel:
    """The model with hidden units of very different size, so that their order matters to every fit."""
    whole = model.whole()
    for index in range(model.inventory.blocks):
        block = whole.get_submodule(f"{model.inventory.block_prefix}.{index}")
        for name in architecture_named(model.inventory.model_type).mlp.sites:
            weight = block.get_submodule(name).weight
            scales = torch.logspace(-1, 1, hidden_units(model))
            torch.nn.init.normal_(weight, std=0.1)
            weight *= scales if weight.shape[1] == len(scales) else scales[:, None]
    whole.save_pretrained(directory)
    return StreamedModel.open(directory)
