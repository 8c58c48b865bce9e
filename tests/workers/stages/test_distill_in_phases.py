"""A job whose matrices are compressed in groups, with a training behind each."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelpress.contract.report import CompressionReport
from modelpress.spec.ranges import TOLERANCE
from tests.support.jobs import Attempt, Stopped, done, kept_checkpoints, small_job
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress as compression
from workers.compression.training.distillation import distil
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.trained import trained_part
from workers.messages import Assignment, ProgressReport, ResumedReport
from workers.stages import calibrate, compress, compute, distill
from workers.stages.plan import sensitivities_of

STEPS, SEQUENCES, LENGTH = 8, 2, 16
"""Steps of the optimiser, all in all."""
RATIO = 1.3


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    distillation = {
        "datasets": ["local:a.txt"],
        "tokens": STEPS * SEQUENCES * LENGTH,
        "length": LENGTH,
        "batch_size": SEQUENCES,
        "phases": 2,
    }
    return small_job(tmp_path_factory.mktemp("job"), blocks=3, target_ratio=RATIO, distillation=distillation)


@pytest.fixture
def assignment(job: Assignment, tmp_path: Path) -> Assignment:
    """Return the same job where nothing of it is done."""
    return job.model_copy(update={"work_dir": tmp_path})


@pytest.fixture(scope="module")
def report(job: Assignment, tmp_path_factory: pytest.TempPathFactory) -> CompressionReport:
    package = done(job.model_copy(update={"work_dir": tmp_path_factory.mktemp("whole")})).package
    return CompressionReport.model_validate_json((package / "compression_report.json").read_bytes())


def test_it_is_as_if_done_by_hand(undisturbed: Attempt) -> None:
    context = undisturbed.context
    original = compute.open_model(context, context.assignment.model_path)
    ids, text = calibrate.calibration(context), calibrate.distillation(context)
    parts: list[CompressedPart] = []
    for phase in compress.schedule(context):
        made: list[CompressedPart] = []
        model, sensitivities = EditedModel(original, parts), sensitivities_of(context)
        for _ in compression(model, phase.plan, ids, made, sensitivities=sensitivities):
            pass
        parts += made
        edited = EditedModel(StreamedModel.open(context.assignment.model_path, dtype=torch.float32), parts)
        student, teacher = edited.whole(), original.whole()
        settings = DistillationSettings(tokens=STEPS // 2 * SEQUENCES * LENGTH, batch_size=SEQUENCES)
        half = text[phase.number :: 2]
        own = None if teacher.dtype == torch.float32 else teacher.dtype
        last = distil(teacher, student, half, settings, compute_dtype=own)
        parts.append(trained_part(edited, last.trained))
    found = list(compress.finished_parts(context))
    assert [part.structures for part in found] == [part.structures for part in parts]
    for one, other in zip(found, parts, strict=True):
        torch.testing.assert_close(dict(one.tensors), dict(other.tensors), rtol=0, atol=0)


def test_a_training_stands_behind_each_group(undisturbed: Attempt) -> None:
    names = [part.name for part in compress.finished_parts(undisturbed.context)]
    assert names.count("distillation") == 2
    assert (names[0], names[-1]) == ("model.embed_tokens", "distillation")


def test_the_progress_says_in_which_phase_it_is_and_never_falls(undisturbed: Attempt) -> None:
    details = undisturbed.details()
    assert details[0].startswith("phase 1 of 2, distilling: 32 of 128 tokens, loss ")
    assert any(detail.startswith("phase 2 of 2, block ") for detail in details)
    assert details[-1].startswith("phase 2 of 2, distilling: 128 of 128 tokens, loss ")
    fractions = [report.fraction for report in undisturbed.reports if isinstance(report, ProgressReport)]
    assert fractions == sorted(fractions)


def test_stopped_anywhere_it_goes_on_to_the_same_weights(assignment: Assignment, undisturbed: Attempt) -> None:
    attempts = 0
    while attempts < 20:
        attempts += 1
        try:
            last = Attempt(assignment, attempts, stop_behind=2)
            break
        except Stopped:
            continue
    assert attempts > 4
    assert ResumedReport(stage="distill") in last.reports
    for found, expected in zip(all_tensors(last), all_tensors(undisturbed), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def all_tensors(attempt: Attempt) -> list[dict[str, Tensor]]:
    return [dict(part.tensors) for part in compress.finished_parts(attempt.context)]


def test_a_finished_training_leaves_no_checkpoint_and_the_next_begins_anew(assignment: Assignment) -> None:
    with pytest.raises(Stopped):
        Attempt(assignment, stop_behind=STEPS // 2 + 1)
    assert kept_checkpoints(assignment) == []
    trained = [detail for detail in Attempt(assignment, 2).details() if "distilling" in detail]
    assert trained[0].startswith("phase 2 of 2, distilling: 32 of")


def test_the_result_is_as_small_as_asked_for(report: CompressionReport) -> None:
    assert report.achieved_ratio == pytest.approx(RATIO, rel=2 * TOLERANCE)


def test_the_report_lists_the_phases(report: CompressionReport) -> None:
    assert report.distillation is not None
    phases = report.distillation.phases
    assert [phase.tokens for phase in phases] == [128, 128]
    changed = dict.fromkeys(site.block for site in report.sites if site.structure is not None)
    listed = [name for phase in phases for name in phase.compressed]
    assert listed == [f"model.layers.{block}" for block in changed]
    assert all(phase.compressed for phase in phases)


def test_the_curve_goes_on_over_all_trainings(report: CompressionReport) -> None:
    assert report.distillation is not None
    points = report.distillation.points
    assert [point.step for point in points] == list(range(1, STEPS + 1))
    assert points[-1].tokens == report.distillation.tokens == STEPS * SEQUENCES * LENGTH
    assert report.distillation.phases[0].loss == points[STEPS // 2 - 1].loss
    assert report.distillation.phases[1].loss == points[-1].loss


def test_a_plan_of_fewer_groups_has_fewer_phases(assignment: Assignment) -> None:
    distillation = assignment.recipe.distillation
    assert distillation is not None
    eight = distillation.model_copy(update={"phases": STEPS})
    recipe = assignment.recipe.model_copy(update={"distillation": eight})
    attempt = Attempt(assignment.model_copy(update={"recipe": recipe}))
    curves = distill.curves(attempt.context)
    assert len(curves) < STEPS
    assert sum(curve.tokens for curve in curves) >= distillation.tokens
