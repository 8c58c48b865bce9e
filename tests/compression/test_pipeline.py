"""A whole model, whatever its plan asks for: as many parts as announced, resumable behind each, as large as planned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE
from modelpress.spec.steps import Absorb, Factor, FactorToSize, Fuse, Refit, Remove
from tests.support.block_removal import Kept
from tests.support.compression import calibration, open_initialised, same
from tests.support.packages import write_package
from tests.support.planning import plan_of
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.steps.influence import influence_text, score

PLANS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "fusion": ("fusion", 1.5, {}),
    "fusion-distilled": ("fusion", 1.5, {"tokens": 384}),
    "fusegpt": ("fusegpt", 1.5, {"tokens": 384}),
    "width": ("width", 1.2, {}),
    "width-low-rank": ("width_low_rank", 1.4, {}),
}
"""The method, the target and the options."""
MODELS = ("llama", "gpt2")
GROUPED = "grouped"
"""With fewer key/value heads: not for GPT-2."""
CASES = [*((model, name) for model in MODELS for name in PLANS), ("llama", GROUPED)]


@dataclass(frozen=True)
class Compressed:
    directory: Path
    plan: Plan
    parts: list[CompressedPart]

    @property
    def removed(self) -> list[int]:
        return [block for part in self.parts for block in part.removed]


def compressed_parts(model: StreamedModel, plan: Plan, checkpoints: Kept | None = None) -> list[CompressedPart]:
    parts: list[CompressedPart] = []
    for _ in compress(model, plan, calibration(), parts, checkpoints=checkpoints):
        pass
    return parts


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def compressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    model_type, name = request.param
    directory = tmp_path_factory.mktemp(model_type)
    model = open_initialised(model_type, directory)
    method, target, options = PLANS["width"] if name == GROUPED else PLANS[name]
    plan = plan_of(model.inventory, method, target, **({"key_value_heads": 1} if name == GROUPED else options))
    return Compressed(directory, plan, compressed_parts(model, plan))


def test_there_are_as_many_parts_as_the_steps_name(compressed: Compressed) -> None:
    inventory = StreamedModel.open(compressed.directory).inventory
    assert len(compressed.plan.labels(inventory)) == len(compressed.parts)


def test_blocks_go_first_and_say_by_which_scores(compressed: Compressed) -> None:
    removal = compressed.plan.step(Remove) or compressed.plan.step(Fuse)
    assert len(compressed.removed) == (0 if removal is None else 1)
    for part in compressed.parts[: len(compressed.removed)]:
        assert min(part.scores, key=lambda block: part.scores[block]) == part.removed[0]
        asked = ("macro_influence", None) if compressed.plan.method == "fusegpt" else ("loss_after_removal", 2)
        model = EditedModel(StreamedModel.open(compressed.directory))
        scores = score(model, influence_text(calibration()), asked[0], candidates=asked[1])
        assert part.scores == pytest.approx(scores.values, abs=1e-6)
    assert not any(part.removed for part in compressed.parts[len(compressed.removed) :])


def test_what_remains_is_refitted_before_it_is_narrowed(compressed: Compressed) -> None:
    kept = [block for block in range(3) if block not in compressed.removed]
    names = [part.name.rpartition(".")[2] for part in compressed.parts[len(compressed.removed) :]]
    refitted = kept if compressed.plan.step(Refit) else []
    distilled = compressed.removed if compressed.plan.step(Absorb) else []
    in_order = [*refitted, *distilled, *kept]
    assert names[: len(in_order)] == [str(block) for block in in_order]


def test_the_package_is_as_large_as_planned_and_without_factors_needs_no_code_of_ours(
    compressed: Compressed, tmp_path: Path
) -> None:
    package = write_package(compressed.directory, compressed.parts, tmp_path / "package")
    assert package.parameters == pytest.approx(compressed.plan.parameters_after, rel=TOLERANCE)
    if compressed.plan.step(Factor) is None and compressed.plan.step(FactorToSize) is None:
        assert AutoModelForCausalLM.from_pretrained(package.directory).num_parameters() == package.parameters
        assert not list(package.directory.glob("*.py"))


def test_resumed_behind_any_part_the_rest_is_the_same(compressed: Compressed) -> None:
    for start in range(1, len(compressed.parts)):
        parts = compressed.parts[:start]
        for _ in compress(StreamedModel.open(compressed.directory), compressed.plan, calibration(), parts):
            pass
        for found, expected in zip(parts, compressed.parts, strict=True):
            assert same(found, expected)


@pytest.mark.parametrize(("method", "batch"), [("fusion", 1), ("fusegpt", 8)])
def test_killed_within_a_distillation_it_goes_on_to_the_same_weights(method: str, batch: int, tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path)
    plan = plan_of(model.inventory, method, 1.5, tokens=40 * batch * 32)
    whole = compressed_parts(model, plan)
    done: list[CompressedPart] = []
    store = Kept(end_after=1)
    with pytest.raises(KeyboardInterrupt):
        for _ in compress(model, plan, calibration(), done, checkpoints=store):
            pass
    (step,) = {checkpoint.step for checkpoint in store.checkpoints.values()}
    assert 0 < step < 40
    for _ in compress(model, plan, calibration(), done, checkpoints=store):
        pass
    for found, expected in zip(done, whole, strict=True):
        assert same(found, expected)


def test_fewer_tokens_than_removed_blocks_still_distil_each(tmp_path: Path) -> None:
    model = open_initialised("llama", tmp_path)
    steps = (Remove(count=2, criterion="macro_influence"), Refit(), Absorb(tokens=1))
    plan = Plan(method="fusion", steps=steps, parameters_before=10, parameters_after=8)
    parts = compressed_parts(model, plan)
    assert len(parts) == len(plan.labels(model.inventory)) == 5
