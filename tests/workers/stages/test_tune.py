"""A job whose rounded model is trained: what is trained when, what the report says, and how it goes on."""

from pathlib import Path

import pytest

from modelpress.contract.report import CompressionReport
from tests.support.jobs import done, small_job
from workers.compression.encoded import UNITS
from workers.messages import Assignment, DoneReport, ResumedReport
from workers.runner import walk
from workers.stages import names
from workers.stages.part_files import read_part

TUNED = f"{names.TUNE}-safetensors"
TOKENS = 32 * 16
DISTILLATION = {
    "datasets": ["local:a.txt"],
    "tokens": TOKENS,
    "length": 16,
    "batch_size": 2,
    "learning_rate": 1e-3,
}


def digests(package: Path) -> str:
    lines = (package / "SHA256SUMS").read_text().splitlines()
    return "\n".join(line for line in lines if ".safetensors" in line)


def report_of(result: DoneReport) -> CompressionReport:
    return CompressionReport.model_validate_json((result.package / "compression_report.json").read_bytes())


@pytest.fixture(scope="module")
def assignment(tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    return small_job(tmp_path_factory.mktemp("job"), method="auto", target_ratio=2.5, distillation=DISTILLATION)


@pytest.fixture(scope="module")
def result(assignment: Assignment) -> DoneReport:
    return done(assignment)


def test_a_model_of_fewer_bits_alone_is_trained_once_it_is_rounded(assignment: Assignment, result: DoneReport) -> None:
    (path,) = assignment.work_dir.rglob(f"{TUNED}/part-*.safetensors")
    part = read_part(path)
    assert any(name.endswith(UNITS) for name in part.tensors)
    assert not list(assignment.work_dir.rglob(f"{names.DISTILL}/part-*"))
    (rounding,) = report_of(result).rounding
    assert report_of(result).distillation is None
    assert rounding.distillation is not None and rounding.distillation.tokens == TOKENS
    assert rounding.distillation.points[-1].loss < rounding.distillation.points[0].loss


def test_the_size_is_that_of_the_untrained_model(result: DoneReport, tmp_path: Path) -> None:
    untrained = done(small_job(tmp_path, method="auto", target_ratio=2.5))
    assert result.metrics.after.bytes == untrained.metrics.after.bytes
    assert digests(result.package) != digests(untrained.package)


def test_card_and_picture_show_the_training(result: DoneReport) -> None:
    assert f"scales were then trained on {TOKENS} tokens" in (result.package / "README.md").read_text()
    assert (result.package / "plots" / "loss_curve.png").stat().st_size > 0


def test_a_killed_job_is_not_trained_twice(assignment: Assignment, result: DoneReport) -> None:
    for later in (names.WRITE, names.EVALUATE, names.PACKAGE, names.VERIFY, names.TUNE):
        (assignment.work_dir / "1" / later / "record.json").unlink()
    before = digests(result.package)
    reports: list[object] = []
    walk(assignment.model_copy(update={"attempt": 2}), reports.append)
    assert not [each for each in reports if isinstance(each, ResumedReport) and each.stage == names.DISTILL]
    last = reports[-1]
    assert isinstance(last, DoneReport) and digests(last.package) == before
    assert not list(assignment.work_dir.rglob(f"2/{TUNED}/part-*"))


def test_structure_is_trained_first_and_the_rounded_model_on_a_quarter_of_the_tokens(tmp_path: Path) -> None:
    report = report_of(done(small_job(tmp_path, method="width", target_ratio=4, distillation=DISTILLATION)))
    (rounding,) = report.rounding
    assert report.distillation is not None and rounding.distillation is not None
    assert (report.distillation.tokens, rounding.distillation.tokens) == (TOKENS * 3 // 4, TOKENS // 4)
