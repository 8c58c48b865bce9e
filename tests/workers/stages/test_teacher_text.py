"""Text that the original writes for a job."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from modelpress.contract.recipe import Recipe
from tests.support.jobs import context_of
from tests.support.text_models import write_text, write_tiny_model
from workers.compression.teacher_text import Sampling
from workers.messages import Assignment, ProgressReport, ResumedReport
from workers.stages import calibrate, teacher_text
from workers.stages.context import Context
from workers.stages.teacher_text import WritingProgress
from workers.stages.workbench import Workbench

FOREIGN = "local:a.txt"


class Job:
    """The stage with a tiny original, whose text comes in batches of two sequences."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = write_tiny_model(directory / "model")
        self.text = write_text(directory / "a.txt", 300)
        self.reports: list[BaseModel] = []

    def context(self, attempt: int = 1, **sections: Any) -> Context:
        assignment = Assignment(
            job_id="job",
            attempt=attempt,
            recipe=recipe(**sections),
            model_path=self.model,
            texts={FOREIGN: self.text},
            work_dir=self.directory / "work",
            device="cpu",
            threads=1,
            memory_bytes=None,
        )
        context = context_of(assignment, self.reports.append)
        context.stage = "calibrate"
        return context

    def run(self, attempt: int = 1, **sections: Any) -> Context:
        """A context in which the stage is done."""
        context = self.context(attempt, **sections)
        directory = context.bench.begin("calibrate")
        calibrate.run(context, directory)
        context.results["calibrate"] = context.bench.finish("calibrate")
        return context

    def parts(self, attempt: int) -> list[str]:
        directory = self.directory / "work" / str(attempt) / "calibrate"
        return sorted(path.name for path in directory.glob("teacher-text-*.safetensors"))


def recipe(**sections: Any) -> Recipe:
    calibration = {"datasets": ["teacher:"], "sequences": 5, "length": 16} | sections.pop("calibration", {})
    evaluation = {"datasets": [FOREIGN], "window": 16, "max_tokens": 64}
    return Recipe.model_validate(
        {"model": "local:model", "target_ratio": 1.2, "calibration": calibration, "evaluation": evaluation, **sections}
    )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.fixture(autouse=True)
def _batches_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(teacher_text, "Sampling", lambda: Sampling(batch=2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_original_writes_the_asked_number_of_sequences(job: Job) -> None:
    context = job.run()
    assert calibrate.calibration(context).shape == (5, 16)
    assert job.parts(1) == [f"teacher-text-{number:05d}.safetensors" for number in range(3)]


def test_what_it_cost_is_recorded(job: Job) -> None:
    cost = teacher_text.cost_of(job.run())
    assert cost is not None
    assert cost.tokens == 5 * 16
    assert cost.seconds > 0


def test_a_job_that_brings_its_text_has_no_cost(job: Job) -> None:
    assert teacher_text.cost_of(job.run(calibration={"datasets": [FOREIGN]})) is None


def test_an_interrupted_job_goes_on_behind_the_last_batch_with_the_same_text(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = Job(tmp_path / "other").run()
    finish = Workbench.finish_part

    def interrupted(bench: Workbench, path: Path) -> None:
        finish(bench, path)
        if path.name.endswith("00001.safetensors"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Workbench, "finish_part", interrupted)
        job.run(attempt=1)
    context = job.run(attempt=2)
    assert job.parts(2) == ["teacher-text-00002.safetensors"]
    assert torch.equal(calibrate.calibration(context), calibrate.calibration(undisturbed))
    assert any(isinstance(report, ResumedReport) for report in job.reports)
    cost = teacher_text.cost_of(context)
    assert cost is not None and cost.tokens == 5 * 16


def test_calibration_and_distillation_read_one_text(job: Job) -> None:
    distillation = {"datasets": ["teacher:"], "tokens": 192, "length": 32, "batch_size": 1}
    context = job.run(distillation=distillation)
    text = torch.cat([load_file(path)["tokens"].flatten() for path in batches(context)])
    assert len(text) == 192, "written once"
    assert calibrate.distillation(context).shape == (6, 32)
    told = {tuple(window) for window in text.view(-1, 16).tolist()}
    assert all(tuple(window) in told for window in calibrate.calibration(context).tolist())


def batches(context: Context) -> list[Path]:
    found = (teacher_text.part(context, number) for number in range(3))
    return [path for path in found if path is not None]


def test_a_mixture_has_as_much_of_its_own_text_as_of_the_other(job: Job) -> None:
    calibration = {"datasets": ["teacher:", FOREIGN], "sequences": 6}
    context = job.run(calibration=calibration)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    known = job.text.read_text()
    foreign = [tokenizer.decode(window) in known for window in calibrate.calibration(context)]
    assert foreign == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, (5, 16)),
        ({"calibration": {"datasets": [FOREIGN, "teacher:"], "sequences": 5}}, (3, 16)),
        ({"calibration": {"datasets": ["teacher:", FOREIGN], "shares": [4, 1], "sequences": 5}}, (4, 16)),
        ({"distillation": {"datasets": ["teacher:"], "tokens": 1000, "length": 64}}, (16, 64)),
        (
            {"calibration": {"length": 32}, "distillation": {"datasets": ["teacher:"], "tokens": 320, "length": 16}},
            (20, 16),
        ),
        ({"distillation": {"datasets": ["teacher:", FOREIGN], "tokens": 1024, "length": 64}}, (8, 64)),
        ({"distillation": {"datasets": [FOREIGN], "tokens": 1024, "length": 64}}, (5, 16)),
    ],
)
def test_no_more_is_written_than_somebody_reads(sections: dict[str, Any], expected: tuple[int, int]) -> None:
    assert recipe(**sections).teacher_text == expected


def test_progress_tells_tokens_and_pace_once_in_a_while(job: Job) -> None:
    seconds = iter((0.0, 0.5, 2.0, 2.5))
    meter = WritingProgress(job.context(), total=1000, before=200, clock=lambda: next(seconds))
    for tokens in (10, 100, 120):
        meter.running(tokens)
    (report,) = job.reports
    assert isinstance(report, ProgressReport)
    assert report.detail == "the original writes text, 300 of 1,000 tokens, 50 per second"
