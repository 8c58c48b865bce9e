"""A whole model, whatever its plan asks for: as many parts as announced, resumable behind each, as large as planned."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.compression.factors.test_sequential import calibration, open_tiny
from workers.compression.accounting.plans import TOLERANCE, Plan
from workers.compression.accounting.sizes import resized_plan
from workers.compression.models.streamed import StreamedModel
from workers.compression.package.checkpoint import write_package
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress, part_count

TARGETS = {"fusion": 1.5, "width": 1.2, "hybrid": 1.4}
MODELS = ("llama", "gpt2")


@dataclass(frozen=True)
class Resized:
    directory: Path
    plan: Plan
    parts: list[CompressedPart]


@pytest.fixture(scope="module", params=[(model, name) for model in MODELS for name in TARGETS], ids="-".join)
def resized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Resized:
    model_type, name = request.param
    directory = tmp_path_factory.mktemp(model_type)
    model = open_tiny(model_type, directory)
    plan = resized_plan(model.inventory, name, TARGETS[name])
    return Resized(directory, plan, list(compress(model, plan, calibration())))


def test_there_are_as_many_parts_as_announced_numbered_in_order(resized: Resized) -> None:
    inventory = StreamedModel.open(resized.directory).inventory
    assert part_count(inventory, resized.plan) == len(resized.parts)
    assert [part.index for part in resized.parts] == list(range(len(resized.parts)))


def test_blocks_go_first_and_say_by_which_scores(resized: Resized) -> None:
    assert resized.plan.removed == (1 if resized.plan.method == "fusion" else 0)
    for part in resized.parts[: resized.plan.removed]:
        assert len(part.removed) == 1
        assert min(part.scores, key=lambda block: part.scores[block]) == part.removed[0]
    assert not any(part.removed for part in resized.parts[resized.plan.removed :])


def test_what_remains_is_refitted_before_it_is_narrowed(resized: Resized) -> None:
    kept = [block for block in range(3) if block not in {gone for part in resized.parts for gone in part.removed}]
    names = [part.name.rpartition(".")[2] for part in resized.parts[resized.plan.removed :]]
    if resized.plan.method == "fusion":
        assert names == [str(block) for block in 2 * kept]


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
            assert (found.index, found.removed, found.tensors.keys()) == (
                expected.index, expected.removed, expected.tensors.keys()
            )  # fmt: skip
            assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in found.tensors.items())


def test_to_resume_the_finished_parts_are_needed(resized: Resized) -> None:
    with pytest.raises(ValueError, match="finished"):
        next(compress(StreamedModel.open(resized.directory), resized.plan, calibration(), start=1))
