"""A job that asks for several formats: what its package holds beside the main checkpoint, and what is said of it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from modelpress.contract.report import CompressionReport
from modelpress.spec.formats import FORMATS
from tests.support.jobs import last_report, small_job
from workers.compression.evaluation.size import stored_size
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart
from workers.messages import Assignment, DoneReport, ErrorReport, ProgressReport
from workers.runner import walk
from workers.stages import write


def asking(root: Path, method: str, *formats: str) -> Assignment:
    return small_job(root, method=method, formats=["safetensors", *formats])


def report_in(package: Path) -> CompressionReport:
    return CompressionReport.model_validate_json((package / "compression_report.json").read_bytes())


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[BaseModel]:
    """Return all that a job with a dense export reports."""
    told: list[BaseModel] = []
    walk(asking(tmp_path_factory.mktemp("job"), "svd", "dense"), told.append)
    return told


@pytest.fixture(scope="module")
def exported(reports: list[BaseModel]) -> Path:
    *_, last = reports
    assert isinstance(last, DoneReport), last
    return last.package


def test_progress_never_goes_back(reports: list[BaseModel]) -> None:
    fractions = [report.fraction for report in reports if isinstance(report, ProgressReport)]
    assert fractions == sorted(fractions)


def test_each_format_lies_in_a_directory_of_its_name_and_in_the_sums(exported: Path) -> None:
    sums = dict(reversed(line.split("  ")) for line in (exported / "SHA256SUMS").read_text().splitlines())
    assert {"dense/model.safetensors", "dense/README.md"} <= sums.keys()
    for name, digest in sums.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest


def test_the_report_and_the_card_say_which_formats_there_are(exported: Path) -> None:
    assert report_in(exported).formats == ("safetensors", "dense")
    assert "`dense/`, dense export" in (exported / "README.md").read_text()


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
    needing = replace(FORMATS["dense"], library="nobody_has_this", extra="multiplication")
    monkeypatch.setattr(write, "FORMATS", {**FORMATS, "dense": needing})
    asked = asking(tmp_path, "svd", "dense")
    error = last_report(asked)
    assert isinstance(error, ErrorReport)
    assert error.code == "missing_extra"
    assert "modelpress[multiplication]" in error.message
    assert not any(asked.work_dir.rglob("*.json"))
