"""Parts in groups with a training between them: which ones, what they are fitted to, and where one goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelpress.spec.plan import Plan
from modelpress.spec.steps import Factor
from tests.support.compression import calibration, open_initialised, same, sensitivities_of
from tests.support.packages import write_package
from tests.support.planning import factored, plan_of, range_of
from tests.support.text_models import write_tiny_gpt2
from workers.compression.math.sensitivity import Sensitivity
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.phases import Phase, phases
from workers.compression.pipeline import compress

TRAINED = "trained"


@dataclass(frozen=True)
class Made:
    """All parts of a model in two phases, and what they were made by."""

    directory: Path
    model: StreamedModel
    plan: Plan
    sensitivities: Mapping[str, Sensitivity]
    parts: list[CompressedPart]

    @property
    def phases(self) -> tuple[Phase, ...]:
        return phases(self.model.inventory, self.plan, 2)


@pytest.fixture(scope="module", params=["svd", "low_rank", "tqcompressor"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory, method = tmp_path_factory.mktemp("model"), request.param
    model = open_wide_gpt2(directory) if method == "tqcompressor" else open_initialised("llama", directory)
    sensitivities = sensitivities_of(model)
    ratio = range_of(model.inventory, method).lowest if method == "tqcompressor" else 1.3
    plan = plan_of(model.inventory, method, ratio, sensitivities)
    parts: list[CompressedPart] = []
    made = Made(directory, model, plan, sensitivities, parts)
    for phase in made.phases:
        parts += compressed(made, phase, parts)
        parts.append(moved(model, parts, phase))
    return made


def open_wide_gpt2(directory: Path) -> StreamedModel:
    """One that the presets make smaller, whose blocks go into several phases."""
    return StreamedModel.open(write_tiny_gpt2(directory, blocks=4))


def compressed(made: Made, phase: Phase, kept: list[CompressedPart], start: int = 0) -> list[CompressedPart]:
    """The phase's parts from the number `start` on, those before which are in `kept`."""
    parts = kept[phase.first : start]
    finished = len(parts)
    model = EditedModel(made.model, kept[: phase.first])
    for _ in compress(model, phase.plan, calibration(), parts, sensitivities=made.sensitivities):
        pass
    return parts[finished:]


def moved(model: StreamedModel, parts: list[CompressedPart], phase: Phase) -> CompressedPart:
    """Move every weight, in place of a training."""
    edited = EditedModel(model, parts)
    names = [name for name in edited.whole().state_dict() if not name.startswith("lm_head")]
    tensors = {name: 1.1 * tensor for name, tensor in edited.read(names).items() if tensor.is_floating_point()}
    return CompressedPart(TRAINED, {}, tensors, {})


def test_every_part_belongs_to_one_phase_in_order(made: Made) -> None:
    first, second = made.phases
    labels = made.plan.labels(made.model.inventory)
    assert first.plan.labels(made.model.inventory) + second.plan.labels(made.model.inventory) == labels
    assert (first.first, first.trained) == (0, len(first.plan.labels(made.model.inventory)))
    assert (second.first, second.trained) == (first.trained + 1, len(labels) + 1)


def test_each_phase_compresses_as_many_parts_or_one_more(made: Made) -> None:
    first, second = (made.parts[phase.first : phase.trained] for phase in made.phases)
    assert sum(bool(part.structures) for part in second) - sum(bool(part.structures) for part in first) in (0, 1)


def test_there_are_no_more_phases_than_parts_that_are_compressed(made: Made) -> None:
    compressed = [part for part in made.parts if part.structures]
    assert len(phases(made.model.inventory, made.plan, 1000)) == len(compressed)


def test_a_plan_that_removes_blocks_is_one_phase(made: Made) -> None:
    fusing = plan_of(made.model.inventory, "fusion", 1.5)
    assert phases(made.model.inventory, fusing) == (Phase(0, fusing, 0, len(fusing.labels(made.model.inventory))),)
    with pytest.raises(ValueError, match="nothing but factor"):
        phases(made.model.inventory, fusing, 2)


def test_one_phase_is_the_compression_without_phases(made: Made) -> None:
    (only,) = phases(made.model.inventory, made.plan)
    whole = factored(made.model, made.plan, calibration(), made.sensitivities)
    for found, expected in zip(compressed(made, only, []), whole, strict=True):
        assert same(found, expected)


def test_parts_are_numbered_in_order_with_the_trained_ones_between(made: Made) -> None:
    numbers = [number for number, part in enumerate(made.parts) if part.name == TRAINED]
    assert numbers == [phase.trained for phase in made.phases]


def test_a_later_phase_compresses_what_the_training_left(made: Made, tmp_path: Path) -> None:
    """By hand: what the training left is written down without factors, and compressed as if it were an original."""
    _, second = made.phases
    dense = CompressedPart("dense", {}, multiplied_out(made.model, made.parts[: second.first]), {})
    write_package(made.directory, [dense], tmp_path / TRAINED)
    step = second.plan.step(Factor)
    assert step is not None
    untouched = [CompressedPart("")] * step.first
    model = StreamedModel.open(tmp_path / TRAINED)
    by_hand = factored(model, made.plan, calibration(), made.sensitivities, untouched)
    for expected, found in zip(by_hand, made.parts[second.first : second.trained], strict=True):
        assert found.structures == expected.structures
        assert found.errors == pytest.approx(expected.errors, rel=1e-3)
        torch.testing.assert_close(dict(found.tensors), dict(expected.tensors), rtol=1e-2, atol=1e-3)


def multiplied_out(model: StreamedModel, parts: list[CompressedPart]) -> dict[str, Tensor]:
    """All weights of the model with these parts, a matrix for every structure."""
    whole = EditedModel(model, parts).whole()
    layers = {name for part in parts for name in part.structures}
    tensors = {name: each for name, each in whole.state_dict().items() if name.rpartition(".")[0] not in layers}
    for name in layers:
        weight = whole.get_submodule(name).dense()
        # GPT-2 stores the matrices of its blocks the other way round.
        tensors[f"{name}.weight"] = weight.T if name.startswith("transformer.h.") else weight
    return {name: each.detach() for name, each in tensors.items() if not name.startswith("lm_head")}


def test_resumed_behind_any_part_the_rest_is_the_same(made: Made) -> None:
    for phase in made.phases:
        for start in range(phase.first, phase.trained + 1):
            rest = compressed(made, phase, made.parts, start)
            for found, expected in zip(rest, made.parts[start : phase.trained], strict=True):
                assert same(found, expected)


def test_the_package_is_as_large_as_planned(made: Made, tmp_path: Path) -> None:
    assert write_package(made.directory, made.parts, tmp_path / "package").parameters == made.plan.parameters_after
