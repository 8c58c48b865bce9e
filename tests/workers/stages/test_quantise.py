"""A job that asks for integers: what its package holds beside the result, and what is said of it."""

import hashlib
from pathlib import Path

import pytest

from tests.support.jobs import done, last_report
from workers.compression.spec.headers import stored_tensors
from workers.compression.spec.methods.width import WidthOptions
from workers.messages import Assignment, ErrorReport
from workers.stages import quantise


@pytest.fixture
def assignment(assignment: Assignment) -> Assignment:
    recipe = assignment.recipe.model_copy(update={"method": WidthOptions(), "quantisation": "int8"})
    return assignment.model_copy(update={"recipe": recipe})


def test_a_verified_package_holds_the_quantised_result_beside_the_result(assignment: Assignment) -> None:
    finished = done(assignment)
    assert finished.metrics.quantised is not None
    assert bytes_of(finished.package) == finished.metrics.after.bytes
    assert bytes_of(finished.package / "int8") == finished.metrics.quantised.bytes
    sums = dict(reversed(line.split("  ")) for line in (finished.package / "SHA256SUMS").read_text().splitlines())
    assert "int8/model.safetensors" in sums
    for name, digest in sums.items():
        assert hashlib.sha256((finished.package / name).read_bytes()).hexdigest() == digest


def bytes_of(directory: Path) -> int:
    return sum(tensor.bytes for tensor in stored_tensors(directory).values())


def test_it_has_fewer_bytes_for_as_many_parameters_and_predicts_almost_the_same(assignment: Assignment) -> None:
    metrics = done(assignment).metrics
    after, quantised = metrics.after, metrics.quantised
    assert quantised is not None
    assert quantised.parameters == after.parameters
    assert quantised.bytes < after.bytes
    assert quantised.perplexity != after.perplexity
    assert quantised.perplexity == pytest.approx(after.perplexity, rel=0.05)


def test_without_the_library_a_job_fails_before_anything_is_computed(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "LIBRARY", "a_library_that_nobody_has")
    error = last_report(assignment)
    assert isinstance(error, ErrorReport)
    assert error.code == "missing_extra"
    assert "modelpress[quantisation]" in error.message
    assert not any(assignment.work_dir.rglob("*.json"))
