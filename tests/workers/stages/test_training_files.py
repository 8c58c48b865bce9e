"""Training runs under way, kept in files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.compression import calibration, open_initialised, same
from tests.support.planning import plan_of
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.stages.training_files import AbsorptionCheckpoints, CheckpointFiles
from workers.stages.workbench import Workbench


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "job_a"


def files(root: Path, attempt: int = 1) -> CheckpointFiles:
    return CheckpointFiles(Workbench(root, attempt, "inputs"), "training", "phase-0000")


def absorptions(root: Path, attempt: int = 1) -> AbsorptionCheckpoints:
    return AbsorptionCheckpoints(Workbench(root, attempt, "inputs"), "compress", lambda saved: None)


def checkpoint(step: int) -> TrainingCheckpoint:
    tensors = {"trained:1.weight": torch.full((2, 3), float(step)), "exp_avg:1.weight": torch.ones(2, 3)}
    return TrainingCheckpoint(step, 2000, 8 * step, (0.5, 1 / step), 1, tensors)


def on_disk(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*.safetensors"))


def test_a_later_attempt_goes_on_from_the_last_checkpoint(root: Path) -> None:
    store = files(root)
    for step in (100, 200):
        store.save(checkpoint(step))
    found = files(root, attempt=2).latest()
    assert found is not None
    assert replace(found, tensors={}) == replace(checkpoint(200), tensors={})
    assert found.tensors.keys() == checkpoint(200).tensors.keys()
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in checkpoint(200).tensors.items())


def test_the_last_one_takes_the_place_of_those_before_it(root: Path) -> None:
    store = files(root)
    for step in (900, 1000, 1100):
        store.save(checkpoint(step))
    assert on_disk(root) == ["phase-0000-000001100.safetensors"]


def test_one_that_was_not_recorded_to_the_end_does_not_count(root: Path) -> None:
    files(root).save(checkpoint(100))
    (path,) = root.rglob("*.safetensors")
    path.with_name(path.name.replace("100", "200")).write_bytes(b"half")
    found = files(root, attempt=2).latest()
    assert found is not None
    assert found.step == 100


def test_one_part_does_not_go_on_from_the_checkpoint_of_another(root: Path) -> None:
    absorptions(root).observer("model.layers.11").save(checkpoint(100))
    assert absorptions(root).observer("model.layers.1").latest() is None


def test_once_the_part_is_finished_no_checkpoint_stays(root: Path) -> None:
    store = absorptions(root)
    store.observer("model.layers.3").save(checkpoint(100))
    store.clear()
    assert store.observer("model.layers.3").latest() is None
    assert on_disk(root) == []


def test_every_checkpoint_of_an_absorption_is_reported(root: Path) -> None:
    reported: list[int] = []
    store = AbsorptionCheckpoints(Workbench(root, 1, "inputs"), "compress", lambda saved: reported.append(saved.step))
    store.observer("model.layers.3").save(checkpoint(100))
    assert reported == [100]


@pytest.mark.parametrize(("method", "batch"), [("fusion", 1), ("fusegpt", 8)])
def test_an_attempt_that_is_killed_within_a_distillation_costs_no_byte_of_the_result(
    method: str, batch: int, root: Path, tmp_path: Path
) -> None:
    model = open_initialised("llama", tmp_path / "model")
    plan = plan_of(model.inventory, method, 1.5, tokens=40 * batch * 32)
    whole: list[CompressedPart] = []
    for _ in compress(model, plan, calibration(), whole):
        pass
    done: list[CompressedPart] = []

    def die(saved: TrainingCheckpoint) -> None:
        raise KeyboardInterrupt

    dying = AbsorptionCheckpoints(Workbench(root, 1, "inputs"), "compress", die)
    with pytest.raises(KeyboardInterrupt):
        for _ in compress(model, plan, calibration(), done, checkpoints=dying):
            pass
    assert len(on_disk(root)) == 1
    for _ in compress(model, plan, calibration(), done, checkpoints=absorptions(root, attempt=2)):
        pass
    assert all(same(found, expected) for found, expected in zip(done, whole, strict=True))
