"""A job that reaches its ratio by fewer bits: what is rounded, how large the result is, and how it goes on."""

from pathlib import Path

import pytest

from modelpress.contract.report import CompressionReport
from modelpress.spec.codes import CODES
from modelpress.spec.headers import stored_tensors
from modelpress.spec.steps import Quantise
from tests.support.jobs import done, last_report, small_job
from workers.compression.formats.safetensors import Safetensors
from workers.compression.overlay import Overlay
from workers.messages import Assignment, DoneReport, ErrorReport, ResumedReport
from workers.runner import walk
from workers.stages import names
from workers.stages.quantise import Rounding

RATIO_BEYOND_BITS = 4.0
CHOSEN = f"{names.QUANTISE}-safetensors/chosen.json"


def step_in(assignment: Assignment, attempt: int = 1) -> Quantise:
    return Rounding.model_validate_json((assignment.work_dir / str(attempt) / CHOSEN).read_bytes()).step


def digests(package: Path) -> str:
    lines = (package / "SHA256SUMS").read_text().splitlines()
    return "\n".join(line for line in lines if ".safetensors" in line)


@pytest.fixture(scope="module")
def assignment(tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    return small_job(tmp_path_factory.mktemp("job"), method="auto", target_ratio=2.5)


@pytest.fixture(scope="module")
def result(assignment: Assignment) -> DoneReport:
    return done(assignment)


def test_bits_alone_make_the_model_as_small_as_was_asked(assignment: Assignment, result: DoneReport) -> None:
    assert result.achieved_ratio == pytest.approx(2.5, rel=0.05)
    assert result.achieved_ratio >= 2.5 * 0.995
    assert {CODES[code].bits for code in step_in(assignment).codes.values()} == {8, 4}


def test_the_bytes_are_those_of_the_file(result: DoneReport) -> None:
    stored = sum(tensor.bytes for tensor in stored_tensors(result.package).values())
    assert result.metrics.after.bytes == stored
    assert result.metrics.after.parameters == result.metrics.before.parameters


def test_the_decoded_weights_are_measured_and_no_copy_of_them_is_left(
    assignment: Assignment, result: DoneReport
) -> None:
    assert 0 < result.metrics.after.kl_divergence["local:b.txt"] < 0.1
    assert result.metrics.after.peak_memory_bytes is None
    assert not list(assignment.work_dir.rglob("decoded"))


def test_the_report_names_the_code_of_every_rounded_matrix(assignment: Assignment, result: DoneReport) -> None:
    report = CompressionReport.model_validate_json((result.package / "compression_report.json").read_bytes())
    assert report.method == "quantisation"
    (rounded,) = report.rounding
    assert rounded.format == "safetensors"
    found = {matrix.name: matrix.code for matrix in rounded.matrices if matrix.code is not None}
    assert found == dict(step_in(assignment).codes)
    assert sum(matrix.bytes for matrix in rounded.matrices) <= result.metrics.after.bytes


def test_card_and_pictures_say_how_many_bits_the_weights_keep(result: DoneReport) -> None:
    card = (result.package / "README.md").read_text()
    assert "Weights rounded for `safetensors`" in card and "bits each on average" in card
    assert "compressed-tensors" in card
    assert (result.package / "plots" / "bits.png").stat().st_size > 0


def test_a_killed_job_goes_on_after_the_last_rounded_block(assignment: Assignment, result: DoneReport) -> None:
    kept = assignment.work_dir / "1" / f"{names.QUANTISE}-safetensors"
    for later in (names.WRITE, names.EVALUATE, names.PACKAGE, names.VERIFY, names.QUANTISE):
        (assignment.work_dir / "1" / later / "record.json").unlink()
    for part in sorted(kept.glob("part-*.safetensors"))[2:]:
        part.unlink()
    again = assignment.model_copy(update={"attempt": 2})
    reports: list[object] = []
    before = digests(result.package)
    walk(again, reports.append)
    assert any(isinstance(report, ResumedReport) and report.stage == names.QUANTISE for report in reports)
    last = reports[-1]
    assert isinstance(last, DoneReport)
    assert digests(last.package) == before


def test_structure_goes_only_where_bits_do_not_suffice(tmp_path: Path) -> None:
    last = done(small_job(tmp_path, method="width", target_ratio=RATIO_BEYOND_BITS))
    assert last.achieved_ratio >= RATIO_BEYOND_BITS * 0.995
    assert last.metrics.after.parameters < last.metrics.before.parameters


def test_a_ratio_beyond_what_the_file_can_hold_fails_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Safetensors, "overhead", lambda self, overlay: 60_000)
    report = last_report(small_job(tmp_path, method="auto", target_ratio=2.5, precision=8))
    assert isinstance(report, ErrorReport)
    assert report.code == "ratio_out_of_range"


def test_at_sixteen_bits_nothing_is_rounded(tmp_path: Path) -> None:
    job = small_job(tmp_path, method="width", target_ratio=1.2)
    last = done(job)
    assert not list(job.work_dir.rglob("chosen.json"))
    assert Overlay.open(last.package).codes == {}
