"""A whole model, whatever its plan asks for: as many parts as announced, resumable behind each, as large as planned."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.compression.steps.test_factor import calibration, open_tiny
from tests.support.block_removal import Kept, same
from workers.compression.formats.checkpoint import write_package
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress, influence_text, part_count
from workers.compression.spec.plans import TOLERANCE, Plan
from workers.compression.spec.sizes import resized_plan
from workers.compression.steps.influence import score

PLANS = {
    "fusion": ("fusion", 1.5, 0),
    "fusion-distilled": ("fusion", 1.5, 384),
    "fusegpt": ("fusegpt", 1.5, 384),
    "width": ("width", 1.2, 0),
    "hybrid": ("hybrid", 1.4, 0),
}
"""The method, the target and the tokens of distillation."""
MODELS = ("llama", "gpt2")
GROUPED = "grouped"
"""With fewer key/value heads: not for GPT-2."""
CASES = [*((model, name) for model in MODELS for name in PLANS), ("llama", GROUPED)]


@dataclass(frozen=True)
class Resized:
    directory: Path
    plan: Plan
    parts: list[CompressedPart]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def resized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Resized:
    model_type, name = request.param
    directory = tmp_path_factory.mktemp(model_type)
    model = open_tiny(model_type, directory)
    method, target, tokens = PLANS["width" if name == GROUPED else name]
    plan = resized_plan(model.inventory, method, target, 1 if name == GROUPED else None)
    plan = dataclasses.replace(plan, absorption_tokens=tokens)
    return Resized(directory, plan, list(compress(model, plan, calibration())))


def test_there_are_as_many_parts_as_announced_numbered_in_order(resized: Resized) -> None:
    inventory = StreamedModel.open(resized.directory).inventory
    assert part_count(inventory, resized.plan) == len(resized.parts)
    assert [part.index for part in resized.parts] == list(range(len(resized.parts)))


def test_blocks_go_first_and_say_by_which_scores(resized: Resized) -> None:
    assert resized.plan.removed == (1 if resized.plan.method in ("fusion", "fusegpt") else 0)
    for part in resized.parts[: resized.plan.removed]:
        assert len(part.removed) == 1
        assert min(part.scores, key=lambda block: part.scores[block]) == part.removed[0]
        asked = ("macro_influence", None) if resized.plan.method == "fusegpt" else ("loss_after_removal", 2)
        model = EditedModel(StreamedModel.open(resized.directory))
        scores = score(model, influence_text(calibration()), asked[0], candidates=asked[1])
        assert part.scores == pytest.approx(scores.values, abs=1e-6)
    assert not any(part.removed for part in resized.parts[resized.plan.removed :])


def test_what_remains_is_refitted_before_it_is_narrowed(resized: Resized) -> None:
    kept = [block for block in range(3) if block not in {gone for part in resized.parts for gone in part.removed}]
    names = [part.name.rpartition(".")[2] for part in resized.parts[resized.plan.removed :]]
    refitted = kept if resized.plan.method == "fusion" else []
    distilled = resized.parts[0].removed if refitted and resized.plan.absorption_tokens else ()
    in_order = [*refitted, *distilled, *kept]
    assert names[: len(in_order)] == [str(block) for block in in_order]


def test_the_package_is_as_large_as_planned_and_without_factors_needs_no_code_of_ours(
    resized: Resized, tmp_path: Path
) -> None:
    package = write_package(resized.directory, resized.parts, tmp_path / "package")
    assert package.parameters == pytest.approx(resized.plan.parameters_after, rel=TOLERANCE)
    if resized.plan.factors is None:
        assert AutoModelForCausalLM.from_pretrained(package.directory).num_parameters() == package.parameters
        assert not list(package.directory.glob("*.py"))


def test_resumed_behind_any_part_the_rest_is_the_same(resized: Resized) -> None:
    for start in range(1, len(resized.parts)):
        model = StreamedModel.open(resized.directory)
        rest = compress(model, resized.plan, calibration(), start=start, finished=resized.parts.__getitem__)
        for found, expected in zip(rest, resized.parts[start:], strict=True):
            assert same(found, expected)


@pytest.mark.parametrize(("method", "batch"), [("fusion", 1), ("fusegpt", 8)])
def test_killed_within_a_distillation_it_goes_on_to_the_same_weights(method: str, batch: int, tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    plan = dataclasses.replace(resized_plan(model.inventory, method, 1.5), absorption_tokens=40 * batch * 32)
    whole = list(compress(model, plan, calibration()))
    done: list[CompressedPart] = []
    store = Kept(end_after=1)
    with pytest.raises(KeyboardInterrupt):
        for part in compress(model, plan, calibration(), checkpoints=store):
            done.append(part)  # noqa: PERF402 - what was finished before the end stays
    (step,) = {checkpoint.step for checkpoint in store.checkpoints.values()}
    assert 0 < step < 40
    for part in compress(model, plan, calibration(), start=len(done), finished=done.__getitem__, checkpoints=store):
        done.append(part)  # noqa: PERF402 - `finished` reads the list while it grows
    for found, expected in zip(done, whole, strict=True):
        assert same(found, expected)


def test_fewer_tokens_than_removed_blocks_still_distil_each(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    plan = Plan("fusion", {}, 10, 8, removed=2, absorption_tokens=1, criterion="macro_influence")
    parts = list(compress(model, plan, calibration()))
    assert len(parts) == part_count(model.inventory, plan) == 5


def test_to_resume_the_finished_parts_are_needed(resized: Resized) -> None:
    with pytest.raises(ValueError, match="finished"):
        next(compress(StreamedModel.open(resized.directory), resized.plan, calibration(), start=1))
