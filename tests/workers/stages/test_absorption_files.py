"""How far the distillation of a removed block is, kept in files."""

import dataclasses
from pathlib import Path

import pytest
import torch
from workers.compression.spec.sizes import resized_plan

from tests.compression.steps.test_factor import calibration, open_tiny
from tests.support.block_removal import same
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.steps.local_distillation import Checkpoint
from workers.stages.absorption_files import CheckpointFiles
from workers.stages.workbench import Workbench


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "job_a"


def files(root: Path, attempt: int = 1) -> CheckpointFiles:
    bench = Workbench(root, attempt, "inputs")
    return CheckpointFiles(bench, "compress", bench.begin("compress"), lambda part, checkpoint: None)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step, 1 / step, {"trained:1.weight": torch.full((2, 3), float(step)), "step:1": torch.tensor(1.0)}
    )


def on_disk(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*.safetensors"))


def test_a_later_attempt_goes_on_from_the_last_checkpoint(root: Path) -> None:
    store = files(root)
    for step in (100, 200):
        store.keep(3, checkpoint(step))
    found = files(root, attempt=2).latest(3)
    assert found is not None
    assert (found.step, found.loss) == (200, 1 / 200)
    assert found.tensors.keys() == checkpoint(200).tensors.keys()
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in checkpoint(200).tensors.items())


def test_the_last_one_takes_the_place_of_those_before_it(root: Path) -> None:
    store = files(root)
    for step in (900, 1000, 1100):
        store.keep(3, checkpoint(step))
    assert on_disk(root) == ["distillation-00003-000001100.safetensors"]


def test_one_that_was_not_recorded_to_the_end_does_not_count(root: Path) -> None:
    files(root).keep(3, checkpoint(100))
    (path,) = root.rglob("*.safetensors")
    path.with_name(path.name.replace("100", "200")).write_bytes(b"half")
    found = files(root, attempt=2).latest(3)
    assert found is not None
    assert found.step == 100


def test_a_part_that_is_finished_leaves_none_and_those_of_others_stay(root: Path) -> None:
    store = files(root)
    store.keep(3, checkpoint(100))
    store.keep(4, checkpoint(100))
    store.clear(3)
    assert store.latest(3) is None
    assert store.latest(4) is not None


def test_every_checkpoint_that_is_kept_is_told(root: Path) -> None:
    told: list[tuple[int, int]] = []
    bench = Workbench(root, 1, "inputs")
    store = CheckpointFiles(
        bench, "compress", bench.begin("compress"), lambda part, kept: told.append((part, kept.step))
    )
    store.keep(3, checkpoint(100))
    assert told == [(3, 100)]


@pytest.mark.parametrize(("method", "batch"), [("fusion", 1), ("fusegpt", 8)])
def test_an_attempt_that_is_killed_within_a_distillation_costs_no_byte_of_the_result(
    method: str, batch: int, root: Path, tmp_path: Path
) -> None:
    model = open_tiny("llama", tmp_path / "model")
    plan = dataclasses.replace(resized_plan(model.inventory, method, 1.5), absorption_tokens=40 * batch * 32)
    whole = list(compress(model, plan, calibration()))
    done: list[CompressedPart] = []

    def die(part: int, kept: Checkpoint) -> None:
        raise KeyboardInterrupt

    bench = Workbench(root, 1, "inputs")
    dying = CheckpointFiles(bench, "compress", bench.begin("compress"), die)
    with pytest.raises(KeyboardInterrupt):
        for part in compress(model, plan, calibration(), checkpoints=dying):
            done.append(part)  # noqa: PERF402 - what was finished before the end stays
    assert len(on_disk(root)) == 1
    again = files(root, attempt=2)
    for part in compress(model, plan, calibration(), start=len(done), finished=done.__getitem__, checkpoints=again):
        done.append(part)  # noqa: PERF402 - `finished` reads the list while it grows
    assert all(same(found, expected) for found, expected in zip(done, whole, strict=True))
