"""The dense export of a job: asked for, verified like the result, and labelled as what it is."""

import json
from pathlib import Path

import pytest

from app.contract.recipe import Export
from app.contract.report import CompressionReport
from tests.support.jobs import done, small_job
from workers.compression.evaluation.size import stored_size
from workers.compression.spec.methods import METHODS


def package_of(root: Path, method: str) -> Path:
    job = small_job(root)
    recipe = job.recipe.model_copy(update={"method": METHODS[method].options(), "export": Export(dense=True)})
    return done(job.model_copy(update={"recipe": recipe})).package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_of(tmp_path_factory.mktemp("job"), "svd")


def test_it_is_an_ordinary_checkpoint_as_large_as_the_original(package: Path) -> None:
    config = json.loads((package / "dense" / "config.json").read_text())
    report = CompressionReport.model_validate_json((package / "compression_report.json").read_bytes())
    assert (config["model_type"], config["dense_export"]) == ("llama", True)
    assert stored_size(package / "dense").parameters == report.metrics.before.parameters
    assert report.dense_export == "dense"


def test_it_is_said_not_to_be_smaller_wherever_one_looks(package: Path) -> None:
    assert "**not smaller**" in (package / "README.md").read_text()
    assert "not smaller" in (package / "dense" / "README.md").read_text()


def test_its_files_are_in_the_sums(package: Path) -> None:
    sums = (package / "SHA256SUMS").read_text()
    assert "  dense/model.safetensors\n" in sums
    assert "  dense/tokenizer.json\n" in sums


def test_a_result_without_factors_has_none(tmp_path: Path) -> None:
    package = package_of(tmp_path, "width")
    assert not (package / "dense").exists()
    assert "dense" not in (package / "README.md").read_text()
