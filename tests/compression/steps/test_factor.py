"""Compressing a whole model part by part, on tiny models of several architectures opened from real files."""

import gc
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from modelpress.spec.families import KroneckerFamily
from modelpress.spec.methods import METHODS
from modelpress.spec.methods.svd import SVD
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE
from modelpress.spec.structures import Kronecker, LowRank, Pivoted
from tests.support.compression import TINY, UNTIED, calibration, open_initialised, same, sensitivities_of
from tests.support.packages import write_package
from tests.support.planning import factor_plan, factored, plan_of, range_of, structures_of, uniform_plan
from workers.compression import structures
from workers.compression.math.sensitivity import Sensitivity, measure, measure_all
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps import two_streams


def assembled(directory: Path, parts: list[CompressedPart]) -> torch.nn.Module:
    """The compressed model as a whole: the original's tensors, less the replaced weights, plus those of the parts."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    for part in parts:
        structures.replace(model, part.structures)
    missing, unexpected = model.load_state_dict(
        {name: tensor for part in parts for name, tensor in part.tensors.items()}, strict=False
    )
    assert not unexpected
    assert not any(name.startswith(tuple(part.structures)) for part in parts for name in missing)
    return model.eval()


def count(model: torch.nn.Module) -> int:
    orders = sum(buffer.numel() for name, buffer in model.named_buffers() if ".order" in name)
    return orders + sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("model_type", "method"), [*((each, "low_rank") for each in TINY), ("llama", "svd")])
@torch.no_grad()
def test_the_parts_make_a_model_of_the_planned_size_near_the_original(
    model_type: str, method: str, tmp_path: Path
) -> None:
    model = open_initialised(model_type, tmp_path)
    plan = uniform_plan(model.inventory, 1.2, METHODS[method].family)
    sensitivities = {name: found for part in measure(model, calibration()) for name, found in part.items()}
    parts = list(factored(model, plan, calibration(), sensitivities))
    compressed = assembled(tmp_path, parts)
    assert count(compressed) == plan.parameters_after
    assert set().union(*(part.structures for part in parts)) == set(structures_of(plan))
    original = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = original(calibration()).logits
    assert (compressed(calibration()).logits - expected).norm() < 0.5 * expected.norm()
    assert all(0 < error < 1 for part in parts for error in part.errors.values())


@pytest.mark.parametrize("permutations", ["searched", "none"])
@pytest.mark.parametrize("model_type", TINY)
@torch.no_grad()
def test_kronecker_sums_make_a_model_of_the_planned_size_near_the_original(
    model_type: str, permutations: str, tmp_path: Path
) -> None:
    model = open_initialised(model_type, tmp_path)
    measured = measure_all(model, calibration(), tiled=KroneckerFamily(permuted=permutations == "searched"))
    plan = plan_of(model.inventory, "kronecker", 1.2, measured, permutations=permutations)
    parts = list(factored(model, plan, calibration(), measured))
    compressed = assembled(tmp_path, parts)
    assert count(compressed) == plan.parameters_after
    assert any(isinstance(structure, Kronecker) for structure in structures_of(plan).values())
    original = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = original(calibration()).logits
    assert (compressed(calibration()).logits - expected).norm() < 0.8 * expected.norm()
    again = list(factored(StreamedModel.open(tmp_path), plan, calibration(), measured, finished=parts[:2]))
    assert all(same(one, other) for one, other in zip(again, parts[2:], strict=True))


def test_hidden_units_follow_the_order_of_a_folded_sum(tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path)
    gate, down = (f"model.layers.1.mlp.{kind}_proj" for kind in ("gate", "down"))
    # All terms hold every matrix exactly, in whichever order.
    exact = Kronecker(16, (24, 4), (8, 4), permute_in=True, folded=True)
    parts = list(factored(model, factor_plan(model.inventory, {gate: exact}), calibration()))
    assert f"{down}.weight" in parts[2].tensors
    assert not torch.equal(parts[2].tensors[f"{down}.weight"], model.read([f"{down}.weight"])[f"{down}.weight"])
    original = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            assembled(tmp_path, parts)(calibration()).logits, original(calibration()).logits, atol=1e-4, rtol=1e-3
        )


def test_going_on_after_a_part_gives_the_same(tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path)
    planned = structures_of(uniform_plan(model.inventory, 1.3))
    plan = factor_plan(model.inventory, {**planned, model.inventory.embedding.name: Pivoted(20)})
    whole = list(factored(model, plan, calibration()))
    rest = list(factored(StreamedModel.open(tmp_path), plan, calibration(), finished=whole[:2]))
    assert [part.name for part in rest] == [part.name for part in whole[2:]]
    for again, before in zip(rest, whole[2:], strict=True):
        assert again.tensors.keys() == before.tensors.keys()
        assert all(torch.equal(again.tensors[name], before.tensors[name]) for name in before.tensors)


def test_a_site_that_the_plan_leaves_out_stays_as_it_is(tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path)
    name = "model.layers.1.mlp.down_proj"
    plan = factor_plan(model.inventory, {name: structures_of(uniform_plan(model.inventory, 1.2))[name]})
    parts = list(factored(model, plan, calibration()))
    assert [list(part.structures) for part in parts] == [[], [], [name], []]


@pytest.fixture(scope="module", params=UNTIED)
def untied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Untied":
    """A model with a head of its own, compressed so far that the head has to give."""
    directory = tmp_path_factory.mktemp(request.param)
    model = open_initialised(request.param, directory, UNTIED[request.param])
    sensitivities = sensitivities_of(model)
    highest = range_of(model.inventory, "low_rank").highest
    plan = plan_of(model.inventory, "low_rank", highest, sensitivities)
    ids = calibration(model.inventory.vocab_size)
    return Untied(directory, plan, sensitivities, ids, list(factored(model, plan, ids, sensitivities)))


@dataclass(frozen=True)
class Untied:
    directory: Path
    plan: Plan
    sensitivities: dict[str, Sensitivity]
    ids: Tensor
    parts: list[CompressedPart]


def test_a_head_of_its_own_is_the_last_part_and_says_its_error(untied: Untied) -> None:
    last = untied.parts[-1]
    assert len(untied.parts) == len(untied.plan.labels(StreamedModel.open(untied.directory).inventory))
    assert list(last.structures) == ["lm_head"]
    assert 0 < last.errors["lm_head"] < 1


@torch.no_grad()
def test_a_package_with_a_compressed_head_is_as_large_as_planned_and_opens(untied: Untied, tmp_path: Path) -> None:
    package = write_package(untied.directory, untied.parts, tmp_path / "package")
    assert package.parameters == pytest.approx(untied.plan.parameters_after, rel=TOLERANCE)
    logits = StreamedModel.open(package.directory).whole()(untied.ids).logits
    torch.testing.assert_close(logits, assembled(untied.directory, untied.parts)(untied.ids).logits)


def test_going_on_after_any_part_gives_the_same_bytes_up_to_the_head(untied: Untied) -> None:
    for start in range(1, len(untied.parts)):
        model = StreamedModel.open(untied.directory)
        rest = factored(model, untied.plan, untied.ids, untied.sensitivities, untied.parts[:start])
        assert all(same(*pair) for pair in zip(rest, untied.parts[start:], strict=True))


@torch.no_grad()
def test_a_head_makes_up_for_the_blocks_before_it(tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path, UNTIED["llama"])
    ids = calibration(400)
    blocks = {site.name: LowRank(8) for site in model.inventory.sites}
    expected = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    distances = []
    for compensation in (0.0, 1.0):
        plan = factor_plan(model.inventory, {**blocks, "lm_head": LowRank(24)}, compensation=compensation)
        parts = list(factored(model, plan, ids))
        distances.append(float((assembled(tmp_path, parts)(ids).logits - expected).norm()))
    assert distances[1] < 0.95 * distances[0]


def test_a_head_that_the_plan_leaves_out_is_a_part_without_content(tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path, UNTIED["llama"])
    planned = uniform_plan(model.inventory, 1.02, SVD.family)
    assert list(factored(model, planned, calibration(400)))[-1] == CompressedPart("lm_head")


def test_the_streams_wait_in_files_that_are_gone_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(two_streams, "TOKENS", 64)
    model = open_initialised("llama", tmp_path / "model")
    parts = factored(model, uniform_plan(model.inventory, 1.2), calibration())
    kept = [[len(list(scratch.glob(f"*/{stream}/*"))) for stream in ("original", "compressed")] for _ in parts]
    assert kept[1:] == [[3, 3]] * (len(kept) - 1)
    assert list(scratch.iterdir()) == []


def test_no_stream_is_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_streams, "TOKENS", 58)
    model = open_initialised("llama", tmp_path)
    ids = calibration()[:, :29]
    for _ in factored(model, uniform_plan(model.inventory, 1.2), ids):
        held = [each for each in gc.get_objects() if type(each) is Tensor and each.shape[1:] == (29, 32)]
        assert sum(len(each) for each in held) <= 2


def test_tables_behind_a_projection_stay_whole(tmp_path: Path) -> None:
    model = open_initialised("opt", tmp_path, {"word_embed_proj_dim": 16, "ffn_dim": 96})
    target = range_of(model.inventory, "low_rank").highest
    plan = plan_of(model.inventory, "low_rank", target, sensitivities_of(model))
    assert model.inventory.embedding.name not in structures_of(plan)
    assert all(part.errors for part in list(factored(model, plan, calibration()))[1:])


def test_a_part_that_was_taken_is_not_kept(tmp_path: Path) -> None:
    model, ids = open_initialised("llama", tmp_path), calibration()
    kept = []
    for part in factored(model, plan_of(model.inventory, "svd", 1.3), ids):
        taken = weakref.ref(part)
        del part
        kept.append(taken() is not None)
    # But for the embedding's, which the streams begin with.
    assert kept == [True, False, False, False]
