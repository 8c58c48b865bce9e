"""The published configuration: its exact size, its steps, and the package that comes of it."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelpress.spec.inventory import Inventory, Site, inventory
from modelpress.spec.methods import MethodDoesNotFit, OptionDoesNotFit
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import RatioOutOfRange
from modelpress.spec.structures import Dense, Halved, Kronecker
from tests.support.packages import write_package
from tests.support.planning import factored, plan_of, range_of, structures_of
from tests.support.text_models import write_tiny_gpt2
from workers.compression.formats.verification import Probe, verify_all
from workers.compression.math.kronecker import data_free
from workers.compression.math.tables import fit_halved
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.structures import HalvedEmbedding


def gpt2_small() -> Inventory:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768)}
    for block, norm in itertools.product(range(12), ("ln_1", "ln_2")):
        shapes |= {f"h.{block}.{norm}.weight": (768,), f"h.{block}.{norm}.bias": (768,)}
    linears = {
        "attn.c_attn": (768, 2304),
        "attn.c_proj": (768, 768),
        "mlp.c_fc": (768, 3072),
        "mlp.c_proj": (3072, 768),
    }
    for block, (name, shape) in itertools.product(range(12), linears.items()):
        shapes |= {f"h.{block}.{name}.weight": shape, f"h.{block}.{name}.bias": shape[1:]}
    shapes |= {"ln_f.weight": (768,), "ln_f.bias": (768,)}
    return inventory({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "vocab_size": 50257}, shapes)


def published_size(model: Inventory, plan: Plan) -> int:
    """The plan's numbers counted as the paper does, without the permutations."""
    sites = {site.name: site for site in (*model.sites, model.embedding)}
    indices = 0
    for name, structure in structures_of(plan).items():
        match structure:
            case Kronecker():
                indices += sites[name].out_features + sites[name].in_features
            case Halved(times):
                indices += sum(sites[name].in_features >> step for step in range(times))
    return plan.parameters_after - indices


@pytest.mark.parametrize(("tied_head", "published", "ratio"), [(False, 119_933_764, 1.037), (True, 81_336_388, 1.529)])
def test_gpt2_small_has_the_published_size(tied_head: bool, published: int, ratio: float) -> None:
    model = gpt2_small()
    plan = plan_of(model, "tqcompressor", ratio, tied_head=tied_head)
    assert model.total_parameters == plan.parameters_before == 124_439_808
    assert published_size(model, plan) == published
    assert plan.parameters_after == published + 12 * (768 + 3072) + 768 + 384


def test_the_released_modules_and_shapes_are_chosen() -> None:
    structures = structures_of(plan_of(gpt2_small(), "tqcompressor", 1.037))
    assert structures["transformer.wte"] == Halved(2)
    assert structures["lm_head"] == Dense()
    assert structures["transformer.h.1.mlp.c_fc"] == Kronecker(4, (768, 4), (384, 2), True, True)
    assert structures["transformer.h.11.mlp.c_proj"] == Kronecker(4, (384, 2), (768, 4), True, True)
    assert len(structures) == 14


def test_the_tied_variant_differs_in_the_head_alone() -> None:
    untied = dict(structures_of(plan_of(gpt2_small(), "tqcompressor", 1.037)))
    del untied["lm_head"]
    tied = plan_of(gpt2_small(), "tqcompressor", 1.529, tied_head=True)
    assert structures_of(tied) == untied


@pytest.mark.parametrize("tied_head", [False, True])
def test_the_range_is_half_a_percent_around_the_one_size(tied_head: bool) -> None:
    found = range_of(gpt2_small(), "tqcompressor", tied_head=tied_head)
    middle = (found.lowest + found.highest) / 2
    assert (found.lowest, found.highest) == pytest.approx((0.995 * middle, 1.005 * middle))
    assert plan_of(gpt2_small(), "tqcompressor", middle, tied_head=tied_head).ratio == pytest.approx(middle)
    for outside in (0.994 * middle, 1.006 * middle):
        with pytest.raises(RatioOutOfRange, match="times smaller"):
            plan_of(gpt2_small(), "tqcompressor", outside, tied_head=tied_head)


def test_a_head_of_its_own_stays_as_it_is() -> None:
    tied = gpt2_small()
    head = replace(tied.embedding, name="lm_head", layout="linear")
    untied = replace(tied, head=head, total_parameters=tied.total_parameters + 50257 * 768)
    plan = plan_of(untied, "tqcompressor", 1.359)
    assert "lm_head" not in structures_of(plan)
    assert published_size(untied, plan) == 119_933_764
    with pytest.raises(OptionDoesNotFit, match="send false") as refusal:
        range_of(untied, "tqcompressor", tied_head=True)
    assert refusal.value.option == "tied_head"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "llama"}, "not for llama"),
        ({"sites": ()}, "not make this model smaller"),
        ({"embedding": Site("transformer.wte", None, 60, 30, "embedding", False)}, "sizes: .* 60 by 30"),
    ],
)
def test_a_model_that_the_preset_does_not_fit_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MethodDoesNotFit, match=complaint):
        range_of(replace(gpt2_small(), **changes), "tqcompressor")


def test_two_halvings_at_once_are_one_after_the_other() -> None:
    table = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    once = fit_halved(Halved(1), table)
    again = fit_halved(Halved(1), once["codes"])
    expected = restored(once | {"codes": restored(again)})
    torch.testing.assert_close(restored(fit_halved(Halved(2), table)), expected)


def restored(factors: dict[str, Tensor]) -> Tensor:
    """The table that the factors of a halved embedding stand for."""
    times, (tokens, width) = len(factors["pairs"]), factors["codes"].shape
    embedding = HalvedEmbedding({"times": times}, tokens, width << times)
    embedding.load_state_dict(factors)
    return embedding.dense().detach()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_gpt2(tmp_path / "source")


def compressed(source: Path, *, tied_head: bool) -> tuple[Plan, list[CompressedPart]]:
    model = StreamedModel.open(source)
    lowest = range_of(model.inventory, "tqcompressor", tied_head=tied_head).lowest
    plan = plan_of(model.inventory, "tqcompressor", lowest, tied_head=tied_head)
    return plan, list(factored(model, plan, torch.randint(60, (2, 16), generator=torch.Generator().manual_seed(0))))


def test_the_package_stores_what_the_plan_says_and_a_stranger_opens_it(source: Path) -> None:
    ids = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(1))
    probes = []
    for tied_head in (False, True):
        plan, parts = compressed(source, tied_head=tied_head)
        package = write_package(source, parts, source.parent / f"package-{tied_head}")
        assert package.parameters == plan.parameters_after
        model = StreamedModel.open(package.directory)
        assert model.inventory.total_parameters == plan.parameters_after
        with torch.no_grad():
            probes.append(Probe(package.directory, ids, model.whole()(ids).logits))
    verify_all(probes)


def test_the_released_head_is_the_original_table(source: Path) -> None:
    _, parts = compressed(source, tied_head=False)
    package = write_package(source, parts, source.parent / "package").directory
    stored = load_file(package / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], load_file(source / "model.safetensors")["transformer.wte.weight"])
    assert "transformer.wte.weight" not in stored
    assert json.loads((package / "config.json").read_text())["tie_word_embeddings"] is False


def test_no_data_enters_the_fit(source: Path) -> None:
    plan, parts = compressed(source, tied_head=True)
    name = "transformer.h.1.mlp.c_fc"
    weight = load_file(source / "model.safetensors")[f"{name}.weight"].T
    structure = structures_of(plan)[name]
    factors = data_free(structure, weight.double())
    for key, factor in factors.items():
        torch.testing.assert_close(parts[2].tensors[f"{name}.{key}"], factor.to(parts[2].tensors[f"{name}.{key}"]))
