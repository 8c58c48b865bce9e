"""A job that asks for several formats: what its package holds beside the main checkpoint, and what is said of it."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.contract.report import CompressionReport
from tests.support.jobs import done, last_report, small_job
from workers.compression.evaluation.size import stored_size
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart
from workers.compression.spec.headers import stored_tensors
from workers.messages import Assignment, DoneReport, ErrorReport, ProgressReport
from workers.runner import walk
from workers.stages import evaluate, write


def asking(root: Path, method: str, *formats: str) -> Assignment:
    return small_job(root, method=method, formats=["safetensors", *formats])


def report_in(package: Path) -> CompressionReport:
    return CompressionReport.model_validate_json((package / "compression_report.json").read_bytes())


def bytes_of(directory: Path) -> int:
    return sum(tensor.bytes for tensor in stored_tensors(directory).values())


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[BaseModel]:
    """Return all that a job with both formats of integers reports."""
    told: list[BaseModel] = []
    walk(asking(tmp_path_factory.mktemp("job"), "width", "int8", "int4"), told.append)
    return told


@pytest.fixture(scope="module")
def rounded(reports: list[BaseModel]) -> DoneReport:
    *_, last = reports
    assert isinstance(last, DoneReport), last
    return last


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done(asking(tmp_path_factory.mktemp("job"), "svd", "dense")).package


def test_each_format_lies_in_a_directory_of_its_name_and_in_the_sums(rounded: DoneReport) -> None:
    package = rounded.package
    assert bytes_of(package) == rounded.metrics.after.bytes
    for name, metrics in rounded.metrics.formats.items():
        assert bytes_of(package / name) == metrics.bytes
    sums = dict(reversed(line.split("  ")) for line in (package / "SHA256SUMS").read_text().splitlines())
    assert {"int8/model.safetensors", "int4/model.safetensors", "int4/README.md"} <= sums.keys()
    for name, digest in sums.items():
        assert hashlib.sha256((package / name).read_bytes()).hexdigest() == digest


def test_a_format_that_rounds_has_figures_of_its_own(rounded: DoneReport) -> None:
    after = rounded.metrics.after
    assert list(rounded.metrics.formats) == ["int8", "int4"]
    for metrics in rounded.metrics.formats.values():
        assert metrics.parameters == after.parameters
        assert metrics.bytes < after.bytes
        assert metrics.perplexity != after.perplexity
        assert metrics.perplexity == pytest.approx(after.perplexity, rel=0.1)


def test_progress_never_goes_back(reports: list[BaseModel]) -> None:
    fractions = [report.fraction for report in reports if isinstance(report, ProgressReport)]
    assert fractions == sorted(fractions)


def test_the_report_and_the_card_say_which_formats_there_are(rounded: DoneReport) -> None:
    report = report_in(rounded.package)
    assert report.formats == ("safetensors", "int8", "int4")
    assert report.metrics.formats == rounded.metrics.formats
    card = (rounded.package / "README.md").read_text()
    assert "`int8/`, 8-bit integers" in card
    assert "compressed, int4" in card


def test_a_dense_export_is_an_ordinary_checkpoint_as_large_as_the_original(exported: Path) -> None:
    config = json.loads((exported / "dense" / "config.json").read_text())
    assert (config["model_type"], config["dense_export"]) == ("llama", True)
    assert stored_size(exported / "dense").parameters == report_in(exported).metrics.before.parameters
    assert "  dense/tokenizer.json\n" in (exported / "SHA256SUMS").read_text()


def test_a_dense_export_is_said_not_to_be_smaller_wherever_one_looks(exported: Path) -> None:
    for card in (exported / "README.md", exported / "dense" / "README.md"):
        assert "**not smaller**" in card.read_text()


def test_a_format_that_does_not_round_has_no_figures_of_its_own(exported: Path) -> None:
    assert report_in(exported).metrics.formats == {}


def overlay_of(assignment: Assignment, structures: dict[str, Any]) -> Overlay:
    return Overlay.open(assignment.model_path, [CompressedPart("part", structures, {}, {})])


def test_a_format_that_does_not_suit_what_auto_chose_is_left_out(tmp_path: Path) -> None:
    asked = asking(tmp_path, "auto", "dense")
    site = StreamedModel.open(asked.model_path).inventory.sites[0].name
    plain, factored = overlay_of(asked, {}), overlay_of(asked, {site: {"kind": "low_rank", "rank": 4}})
    assert [form.name for form in write.suitable(asked.recipe, plain)] == ["safetensors"]
    assert [form.name for form in write.suitable(asked.recipe, factored)] == ["safetensors", "dense"]


def test_a_format_that_was_asked_for_with_a_method_is_never_left_out(tmp_path: Path) -> None:
    asked = asking(tmp_path, "svd", "dense")
    assert [form.name for form in write.suitable(asked.recipe, overlay_of(asked, {}))] == ["safetensors", "dense"]


def test_without_its_library_a_job_fails_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "find_spec", lambda name: None if name == "compressed_tensors" else find_spec(name))
    asked = asking(tmp_path, "width", "int8")
    error = last_report(asked)
    assert isinstance(error, ErrorReport)
    assert error.code == "missing_extra"
    assert "modelpress[quantisation]" in error.message
    assert not any(asked.work_dir.rglob("*.json"))


def test_a_later_attempt_measures_only_what_an_earlier_one_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "peaks_of", lambda _, directories: [None] * len(directories))
    asked = asking(tmp_path, "width", "int8")
    with monkeypatch.context() as broken:
        broken.setattr(evaluate, "measure_rounded", lambda *_: 1 / 0)
        assert isinstance(last_report(asked), ErrorReport)
    monkeypatch.setattr(evaluate, "measured_beside_original", lambda *_: 1 / 0)
    monkeypatch.setattr(write, "run", lambda *_: 1 / 0)
    assert list(done(asked.model_copy(update={"attempt": 2})).metrics.formats) == ["int8"]
