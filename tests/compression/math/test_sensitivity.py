"""What an error at a site costs: the prediction against the divergence that the error really makes."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from modelpress.spec.families import KroneckerFamily, tables_of
from modelpress.spec.ranges import TOLERANCE
from tests.support.planning import plan_of, range_of, structures_of
from workers.compression.math.sensitivity import Sensitivity, from_tensors, measure, measure_all, smoothed, to_tensors
from workers.compression.math.tables import table_gram
from workers.compression.models.streamed import StreamedModel

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=200,
)
DOWN = "model.layers.2.mlp.down_proj"
IDS = torch.randint(200, (16, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logits are as far apart as a trained one's, so that its predictions are not all alike."""
    path = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    CONFIG.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(CONFIG)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sensitivities(directory: Path) -> dict[str, Sensitivity]:
    return {name: found for part in measure(StreamedModel.open(directory), IDS) for name, found in part.items()}


@torch.no_grad()
def divergence(directory: Path, name: str, change: Tensor) -> float:
    """KL of the changed model from the original, in nats per token."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    before = model(IDS).logits.log_softmax(-1)
    model.get_parameter(f"{name}.weight").add_(change)
    after = model(IDS).logits.log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_every_site_and_the_embedding_are_measured(directory: Path, sensitivities: dict[str, Sensitivity]) -> None:
    inventory = StreamedModel.open(directory).inventory
    sites = (*inventory.sites, inventory.embedding)
    assert set(sensitivities) == {site.name for site in sites}
    for site in sites:
        assert sensitivities[site.name].spectrum.shape == (min(site.out_features, site.in_features),)
        assert sensitivities[site.name].outputs.shape == (site.out_features,)


def test_the_seed_decides_which_labels_are_drawn(directory: Path, sensitivities: dict[str, Sensitivity]) -> None:
    def again(seed: int) -> Tensor:
        measured = (found for part in measure(StreamedModel.open(directory), IDS, seed=seed) for found in part.items())
        return dict(measured)[DOWN].outputs

    assert torch.equal(again(0), sensitivities[DOWN].outputs)
    assert not torch.allclose(again(1), sensitivities[DOWN].outputs, rtol=1e-3)


@pytest.mark.parametrize("name", [DOWN, "model.layers.1.mlp.up_proj", "model.layers.2.self_attn.o_proj"])
def test_the_whole_spectrum_predicts_what_small_errors_do(
    name: str, directory: Path, sensitivities: dict[str, Sensitivity]
) -> None:
    weight = AutoModelForCausalLM.from_pretrained(directory).get_parameter(f"{name}.weight").detach()
    step = 0.05
    found = divergence(directory, name, -step * weight)
    assert found == pytest.approx(step**2 * float(sensitivities[name].spectrum.sum()), rel=0.6)


def test_a_random_error_of_the_embedding_costs_what_is_predicted(
    directory: Path, sensitivities: dict[str, Sensitivity]
) -> None:
    measured = sensitivities["model.embed_tokens"]
    assert measured.inputs is not None
    change = 0.005 * torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    predicted = float((table_gram(change, measured.outputs) * measured.inputs).sum()) / 2
    assert divergence(directory, "model.embed_tokens", change) == pytest.approx(predicted, rel=0.6)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same model with a head of its own."""
    path = tmp_path_factory.mktemp("untied")
    torch.manual_seed(1)
    config = copy.deepcopy(CONFIG)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(path)
    return path


def test_a_random_error_of_a_head_costs_what_is_predicted(untied: Path) -> None:
    model = StreamedModel.open(untied)
    (found,) = next(iter(measure(model, IDS))).values()
    hidden = model.hidden(IDS)
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            hidden = model.run(block, index, hidden).detach()
    entering = model.head_inputs(hidden).flatten(0, 1).double()
    change = 0.02 * torch.randn(200, 64, generator=torch.Generator().manual_seed(1)).double()
    predicted = float((found.outputs[:, None] * (change @ entering.T)).square().sum()) / len(entering) / 2
    assert divergence(untied, "lm_head", change.float()) == pytest.approx(predicted, rel=0.3)


def test_the_spectrum_of_a_head_is_what_its_whole_matrix_is_worth(untied: Path) -> None:
    found = next(iter(measure(StreamedModel.open(untied), IDS)))["lm_head"]
    assert found.spectrum.shape == (64,)
    step = 0.05
    weight = AutoModelForCausalLM.from_pretrained(untied).get_parameter("lm_head.weight").detach()
    assert divergence(untied, "lm_head", -step * weight) == pytest.approx(
        step**2 * float(found.spectrum.sum()), rel=0.6
    )


def test_what_a_text_does_not_hold_counts_the_more_the_sooner_the_tokenizer_merged_it() -> None:
    met = torch.zeros(50_000).double()
    met[40_000] = 3.0
    weights = smoothed(met)
    assert weights.sum() == pytest.approx(3.0)
    assert weights[40_000] > 1.2
    assert weights[1_000] > 5 * weights[20_000] > 5 * weights[49_999] > 0


def test_sensitivities_survive_the_way_through_a_file(sensitivities: dict[str, Sensitivity]) -> None:
    again = from_tensors(to_tensors(sensitivities))
    assert again.keys() == sensitivities.keys()
    for name, sensitivity in sensitivities.items():
        assert torch.equal(again[name].spectrum, sensitivity.spectrum)
        assert (again[name].inputs is None) == (sensitivity.inputs is None)


def test_errors_of_tiles_are_measured_on_demand_and_survive_a_file(directory: Path, untied: Path) -> None:
    for path in (directory, untied):
        model = StreamedModel.open(path)
        family = KroneckerFamily()
        measured = measure_all(model, IDS, tiled=family)
        for site in (*model.inventory.sites, *tables_of(model.inventory)):
            found = measured[site.name]
            assert set(found.tiles) == {str(tile) for tile in family.tiles(site)}
            for errors in found.tiles.values():
                # Leaving out all of the matrix costs the same in whichever way it is reckoned.
                assert float(errors[0]) == pytest.approx(float(found.spectrum.sum()), rel=1e-6)
                assert (errors.diff() <= 0).all()
        again = from_tensors(to_tensors(measured))
        assert torch.equal(again[DOWN].tiles["4x4"], measured[DOWN].tiles["4x4"])


@pytest.mark.parametrize("part", [0.05, 0.3, 0.8])
def test_a_measured_plan_meets_its_target(part: float, directory: Path, sensitivities: dict[str, Sensitivity]) -> None:
    inventory = StreamedModel.open(directory).inventory
    feasible = range_of(inventory, "low_rank")
    target = feasible.lowest + part * (feasible.highest - feasible.lowest)
    plan = plan_of(inventory, "low_rank", target, sensitivities)
    assert plan.ratio == pytest.approx(target, rel=2 * TOLERANCE)
    assert plan.parameters_after <= inventory.total_parameters / target


def test_a_site_that_matters_more_keeps_more(directory: Path, sensitivities: dict[str, Sensitivity]) -> None:
    inventory = StreamedModel.open(directory).inventory
    name = "model.layers.1.mlp.up_proj"
    louder = {**sensitivities, name: Sensitivity(100 * sensitivities[name].spectrum, sensitivities[name].outputs)}
    plans = [plan_of(inventory, "low_rank", 1.5, each) for each in (sensitivities, louder)]
    kept = [structures_of(plan).get(name) for plan in plans]
    ranks = [getattr(structure, "rank", 64) for structure in kept]
    assert ranks[0] < ranks[1]


def test_no_activation_of_a_finished_block_waits_for_the_collector(directory: Path) -> None:
    model = StreamedModel.open(directory)
    gc.collect()
    gc.disable()
    try:
        *blocks, _ = [sum(issubclass(type(each), Tensor) for each in gc.get_objects()) for _ in measure(model, IDS)]
    finally:
        gc.enable()
    assert len(set(blocks)) == 1
