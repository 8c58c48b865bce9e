"""How far the distillation of a removed block is, kept in files."""

from pathlib import Path

import pytest
import torch

from tests.support.compression import calibration, open_initialised, same
from tests.support.planning import plan_of
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
    return CheckpointFiles(bench, "compress", bench.begin("compress"), lambda checkpoint: None)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step, 1 / step, {"trained:1.weight": torch.full((2, 3), float(step)), "step:1": torch.tensor(1.0)}
    )


def on_disk(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*.safetensors"))


def test_a_later_attempt_goes_on_from_the_last_checkpoint(root: Path) -> None:
    store = files(root)
    for step in (100, 200):
        store.keep("model.layers.3", checkpoint(step))
    found = files(root, attempt=2).latest("model.layers.3")
    assert found is not None
    assert (found.step, found.loss) == (200, 1 / 200)
    assert found.tensors.keys() == checkpoint(200).tensors.keys()
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in checkpoint(200).tensors.items())


def test_the_last_one_takes_the_place_of_those_before_it(root: Path) -> None:
    store = files(root)
    for step in (900, 1000, 1100):
        store.keep("model.layers.3", checkpoint(step))
    assert on_disk(root) == ["distillation-model.layers.3-000001100.safetensors"]


def test_one_that_was_not_recorded_to_the_end_does_not_count(root: Path) -> None:
    files(root).keep("model.layers.3", checkpoint(100))
    (path,) = root.rglob("*.safetensors")
    path.with_name(path.name.replace("100", "200")).write_bytes(b"half")
    found = files(root, attempt=2).latest("model.layers.3")
    assert found is not None
    assert found.step == 100


def test_one_part_does_not_go_on_from_the_checkpoint_of_another(root: Path) -> None:
    files(root).keep("model.layers.3", checkpoint(100))
    assert files(root).latest("model.layers.4") is None


def test_once_the_part_is_finished_no_checkpoint_stays(root: Path) -> None:
    store = files(root)
    store.keep("model.layers.3", checkpoint(100))
    store.clear()
    assert store.latest("model.layers.3") is None
    assert on_disk(root) == []


def test_every_checkpoint_that_is_kept_is_told(root: Path) -> None:
    told: list[int] = []
    bench = Workbench(root, 1, "inputs")
    store = CheckpointFiles(bench, "compress", bench.begin("compress"), lambda kept: told.append(kept.step))
    store.keep("model.layers.3", checkpoint(100))
    assert told == [100]


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

    def die(kept: Checkpoint) -> None:
        raise KeyboardInterrupt

    bench = Workbench(root, 1, "inputs")
    dying = CheckpointFiles(bench, "compress", bench.begin("compress"), die)
    with pytest.raises(KeyboardInterrupt):
        for _ in compress(model, plan, calibration(), done, checkpoints=dying):
            pass
    assert len(on_disk(root)) == 1
    for _ in compress(model, plan, calibration(), done, checkpoints=files(root, attempt=2)):
        pass
    assert all(same(found, expected) for found, expected in zip(done, whole, strict=True))
