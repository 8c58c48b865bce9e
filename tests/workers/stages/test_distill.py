"""The stage that trains: what it leaves, what it says, and where it goes on."""

from pathlib import Path

import pytest
import torch

from modelpress.contract.distillation import Distillation
from tests.support.jobs import STEPS, Attempt, Stopped, context_of, distillation_job, kept_checkpoints
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.messages import Assignment, ResumedReport
from workers.stages import compress, distill, training
from workers.stages.curve import POINTS, Point, curve_of, joined


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    return distillation_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def assignment(job: Assignment, tmp_path: Path) -> Assignment:
    """Return the same job where nothing of it is done."""
    return job.model_copy(update={"work_dir": tmp_path})


def test_what_was_trained_is_the_last_part(undisturbed: Attempt) -> None:
    *_, before, last = compress.finished_parts(undisturbed.context)
    assert (before.name, last.name) == ("model.layers.1", "distillation")
    assert last.tensors.keys() >= before.tensors.keys()
    name = next(iter(before.tensors))
    assert not before.tensors[name].equal(last.tensors[name])


def test_every_step_is_told(undisturbed: Attempt) -> None:
    details = undisturbed.details()
    assert len(details) == STEPS
    assert details[9].startswith("distilling: 320 of 512 tokens, loss ")


def test_the_loss_of_every_step_is_in_the_curve(undisturbed: Attempt) -> None:
    (curve,) = distill.curves(undisturbed.context)
    assert (curve.tokens, curve.restarts, len(curve.points)) == (512, 0, STEPS)
    assert curve.points[9].tokens == 320
    assert f"loss {curve.points[9].loss:.3g}" in undisturbed.details()[9]


def test_only_the_newest_state_of_the_training_is_kept(assignment: Assignment) -> None:
    with pytest.raises(Stopped):
        Attempt(assignment, stop_behind=11)
    assert kept_checkpoints(assignment) == ["phase-0000-000000010.safetensors"]


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(assignment: Assignment, undisturbed: Attempt) -> None:
    for number in (1, 2, 3):
        with pytest.raises(Stopped):
            Attempt(assignment, number, stop_behind=4)
    last = Attempt(assignment, 4)
    assert ResumedReport(stage="distill") in last.reports
    assert len(last.details()) == STEPS - 9
    torch.testing.assert_close(last.trained(), undisturbed.trained(), rtol=0, atol=0)


def test_a_damaged_state_is_not_gone_on_from(assignment: Assignment) -> None:
    with pytest.raises(Stopped):
        Attempt(assignment, stop_behind=5)
    (state,) = assignment.work_dir.glob("*/training/*.safetensors")
    state.write_bytes(state.read_bytes()[:-1])
    assert len(Attempt(assignment, 2).details()) == STEPS


def test_a_recipe_without_distillation_has_no_curve(assignment: Assignment) -> None:
    context = context_of(assignment)
    assert distill.curves(context) == ()


def test_a_divergence_that_was_mended_is_told() -> None:
    assert training.training_detail(2048, 4096, 1.5, 0) == "distilling: 2,048 of 4,096 tokens, loss 1.5"
    once = training.training_detail(2048, 4096, 1.5, 1)
    assert once.endswith("; diverged once and continued at a lower learning rate")
    assert "diverged 2 times" in training.training_detail(2048, 4096, 1.5, 2)


def test_a_long_curve_is_thinned_to_means_that_leave_out_no_step() -> None:
    losses = tuple(float(step) for step in range(10_001))
    curve = curve_of(TrainingCheckpoint(10_001, 10_001, 20_002, losses, 3, {}))
    assert (len(curve.points), curve.restarts) == (POINTS, 3)
    assert curve.points[0] == Point(20, 40, 9.5)
    assert (curve.points[-1].step, curve.points[-1].tokens) == (10_001, 20_002)


def test_trainings_one_after_another_are_shown_as_one() -> None:
    runs = (((4, 3), 1), ((2, 1), 0))
    curves = [curve_of(TrainingCheckpoint(2, 2, 32, losses, restarts, {})) for losses, restarts in runs]
    curve = joined(curves)
    assert (curve.tokens, curve.restarts) == (64, 1)
    assert [(point.step, point.tokens, point.loss) for point in curve.points] == [
        (1, 16, 4), (2, 32, 3), (3, 48, 2), (4, 64, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(("tokens", "interval"), [(1024, 1), (262_144, 12), (1_000_000_000, 50)])
def test_a_training_is_kept_ten_times_or_every_fifty_steps(tokens: int, interval: int) -> None:
    distillation = Distillation(tokens=tokens, length=256, batch_size=8 if tokens > 1024 else 1)
    assert training.settings_of(distillation, distillation.tokens).interval == interval


def test_every_option_of_training_reaches_it_by_its_name() -> None:
    options: dict[str, object] = {
        "learning_rate": 1e-3,
        "warmup_ratio": 0.1,
        "temperature": 2.0,
        "cross_entropy_weight": 0.5,
        "hidden_weight": 0.25,
        "trainable": "norms",
        "batch_size": 3,
        "micro_batch_size": 1,
        "gradient_checkpointing": True,
    }
    settings = training.settings_of(Distillation.model_validate(options), 2**18)
    assert vars(settings).items() >= options.items()
    assert training.settings_of(Distillation(teacher_top_k=8), 2**18).teacher_top_k == 8
    others = {"datasets", "shares", "tokens", "length", "sharded", "phases", "teacher_top_k"}
    assert Distillation.model_fields.keys() == options.keys() | others
