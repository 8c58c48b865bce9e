"""Several ratios in one job: what is done once, what each leaves, and where a new attempt goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from modelpress.contract.recipe import Gate
from modelpress.contract.report import CompressionReport, SweepReport
from tests.support.jobs import RECORDED, done, small_job
from tests.support.text_models import amplify_blocks
from workers.compression.evaluation.size import stored_size
from workers.messages import Assignment, DoneReport, ProgressReport, ResumedReport
from workers.runner import walk
from workers.stages import calibrate, part_files, plan
from workers.stages.sweep import directory_name

RATIOS = (1.2, 1.5)


def sweep_job(directory: Path) -> Assignment:
    job = small_job(directory)
    amplify_blocks(job.model_path)
    gate = Gate(min_top1_agreement=1.0, max_perplexity_ratio=1e9)
    changes = {"target_ratio": RATIOS, "evaluation": job.recipe.evaluation.model_copy(update={"gate": gate})}
    return job.model_copy(update={"recipe": job.recipe.model_copy(update=changes)})


class Interruption(Exception):
    pass


class Walks:
    """A sweep that is interrupted in the compression for its second ratio, and the attempt that ends it."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.reports: list[BaseModel] = []
        self.resumed: list[BaseModel] = []
        self.count(patch, calibrate, "calibration_windows")
        self.count(patch, plan, "measure_sensitivities")
        job = sweep_job(directory)
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(part_files, "write_part", self.breaking(part_files.write_part))
            assert not walk(job, self.reports.append, RECORDED)
        assert walk(job.model_copy(update={"attempt": 2}), self.resumed.append, RECORDED)
        done = self.resumed[-1]
        assert isinstance(done, DoneReport)
        self.done = done

    def count(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any) -> Any:
            self.calls.append(name)
            return original(*arguments)

        patch.setattr(module, name, counted)

    def breaking(self, write: Any) -> Any:
        def written(path: Path, part: Any) -> None:
            if "ratio-1.5" in path.parts and path.name == part_files.file_name(2):
                raise Interruption
            write(path, part)

        return written


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walks]:
    with pytest.MonkeyPatch.context() as patch:
        yield Walks(tmp_path_factory.mktemp("job"), patch)


def test_text_is_read_and_the_model_measured_once_for_all_ratios_and_attempts(walks: Walks) -> None:
    assert sorted(walks.calls) == ["calibration_windows", "measure_sensitivities"]


def test_a_new_attempt_goes_on_within_the_ratio_that_was_at_work(walks: Walks) -> None:
    assert [report for report in walks.resumed if isinstance(report, ResumedReport)] == [
        ResumedReport(stage="compress", block=1)
    ]


def test_each_ratio_is_a_checkpoint_of_its_size(walks: Walks) -> None:
    for result in walks.done.sweep:
        directory = walks.done.package / result.directory
        assert stored_size(directory).parameters == result.metrics.after.parameters
        assert result.achieved_ratio == pytest.approx(result.target_ratio, rel=0.01)
        report = CompressionReport.model_validate_json((directory / "compression_report.json").read_bytes())
        assert report.recipe.target_ratio == report.target_ratio == result.target_ratio
    assert tuple(result.target_ratio for result in walks.done.sweep) == RATIOS


def test_an_interrupted_ratio_has_the_weights_that_it_has_alone(walks: Walks, tmp_path: Path) -> None:
    job = small_job(tmp_path)
    amplify_blocks(job.model_path)
    alone = done(job.model_copy(update={"recipe": job.recipe.at(RATIOS[1])}))
    assert alone.sweep == ()
    weights = (alone.package / "model.safetensors").read_bytes()
    assert weights == (walks.done.package / "1.5" / "model.safetensors").read_bytes()


def test_the_top_of_the_package_holds_the_curve_and_the_sums_of_all(walks: Walks) -> None:
    package = walks.done.package
    report = SweepReport.model_validate_json((package / "sweep_report.json").read_bytes())
    assert report.results == walks.done.sweep
    assert (package / "tradeoff.svg").read_text().startswith("<?xml")
    assert "[`1.5`](1.5)" in (package / "README.md").read_text()
    sums = [line.partition("  ")[2] for line in (package / "SHA256SUMS").read_text().splitlines()]
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert sorted(sums) == sorted(files - {"SHA256SUMS"})
    assert {"sweep_report.json", "1.2/SHA256SUMS", "1.5/model.safetensors"} <= set(sums)


def test_the_job_has_the_figures_of_its_first_ratio(walks: Walks) -> None:
    first, _ = walks.done.sweep
    assert (walks.done.achieved_ratio, walks.done.metrics) == (first.achieved_ratio, first.metrics)


def test_a_miss_of_the_gate_names_its_ratio(walks: Walks) -> None:
    assert walks.done.missed is not None
    assert all(f"at ratio {ratio:g} the top-1 agreement" in walks.done.missed for ratio in RATIOS)


def test_progress_never_goes_back_and_names_the_ratio(walks: Walks) -> None:
    for reports in (walks.reports, walks.resumed):
        told = [report for report in reports if isinstance(report, ProgressReport)]
        fractions = [report.fraction for report in told]
        assert fractions == sorted(fractions)
    assert told[-1].fraction < 1
    assert told[-1].detail == "ratio 1.5, opening the package in a fresh process"


@pytest.mark.parametrize(("ratio", "name"), [(2.0, "2"), (1.15, "1.15"), (1.3000000001, "1.3000000001")])
def test_a_directory_is_named_after_its_ratio(ratio: float, name: str) -> None:
    assert directory_name(ratio) == name
