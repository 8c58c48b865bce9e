"""Small jobs on a tiny model, taken through their stages in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from modelpress.contract.recipe import Recipe
from tests.support.meter import RecordedMeter
from tests.support.text_models import write_text, write_tiny_model
from workers.messages import Assignment, DoneReport, ProgressReport
from workers.runner import identity, take, walk
from workers.stages import compress, distill
from workers.stages.context import Context
from workers.stages.meter import Meter
from workers.stages.registry import STAGES
from workers.stages.stage import Schedule
from workers.stages.workbench import Workbench

RECORDED = RecordedMeter()

STEPS = 16
"""The optimizer steps of `distillation_job`."""


def small_job(directory: Path, *, blocks: int = 3, **sections: Any) -> Assignment:
    """Return the assignment of a job on a tiny Llama of `blocks` blocks; `sections` override those of its recipe."""
    recipe = {
        "model": "local:model",
        "target_ratio": 1.2,
        "method": "low_rank",
        "calibration": {"datasets": ["local:a.txt"], "sequences": 4, "length": 16},
        "evaluation": {"datasets": ["local:b.txt"], "window": 16, "max_tokens": 64},
    }
    texts = {
        f"local:{name}": write_text(directory / name, 600, offset) for name, offset in (("a.txt", 0), ("b.txt", 1))
    }
    return Assignment(
        job_id="job",
        attempt=1,
        recipe=Recipe.model_validate(recipe | sections),
        model_path=write_tiny_model(directory / "model", blocks=blocks),
        texts=texts,
        work_dir=directory / "work",
        device="cpu",
        threads=1,
        memory_bytes=None,
    )


def last_report(assignment: Assignment, meter: Meter = RECORDED) -> BaseModel:
    """Return the report that ends an attempt at the job, by default one whose figures were recorded before."""
    reports: list[BaseModel] = []
    walk(assignment, reports.append, meter)
    return reports[-1]


def done(assignment: Assignment, meter: Meter = RECORDED) -> DoneReport:
    """Return the report of an attempt that must succeed."""
    report = last_report(assignment, meter)
    assert isinstance(report, DoneReport), report
    return report


def distillation_job(directory: Path) -> Assignment:
    """Return the assignment of a job that narrows two MLPs and trains for STEPS steps."""
    distillation = {
        "datasets": ["local:a.txt"],
        "tokens": STEPS * 32,
        "length": 16,
        "batch_size": 2,
        "micro_batch_size": 1,
    }
    return small_job(directory, blocks=2, target_ratio=1.3, method="width", distillation=distillation)


def context_of(
    assignment: Assignment, report: Callable[[BaseModel], None] = lambda message: None, fingerprint: str = "inputs"
) -> Context:
    """Return the context of an attempt for which no stage has run."""
    bench = Workbench(assignment.work_dir, assignment.attempt, fingerprint)
    return Context(assignment, bench, report, Schedule.of(assignment.recipe, STAGES))


class Stopped(Exception):
    """The process has ended here."""


class Attempt:
    """The stages of an attempt up to the training, and its reports; `stop_behind` so many steps it is stopped."""

    def __init__(self, assignment: Assignment, number: int = 1, stop_behind: int | None = None) -> None:
        self.reports: list[BaseModel] = []
        self.stop_behind = stop_behind
        numbered = assignment.model_copy(update={"attempt": number})
        self.context = context_of(numbered, self.report, identity(assignment))
        before = [stage for stage in STAGES[: STAGES.index(distill.STAGE) + 1] if stage.wanted(assignment.recipe)]
        take(self.context, before)

    def report(self, message: BaseModel) -> None:
        self.reports.append(message)
        if len(self.details()) == self.stop_behind:
            raise Stopped

    def details(self) -> list[str]:
        """Return what the training has said of each step."""
        return [
            report.detail or ""
            for report in self.reports
            if isinstance(report, ProgressReport) and report.detail and report.stage == "distill"
        ]

    def trained(self) -> dict[str, Tensor]:
        """Return the tensors of the last part."""
        *_, last = compress.finished_parts(self.context)
        return dict(last.tensors)


def kept_checkpoints(assignment: Assignment) -> list[str]:
    """Return the names of the training's checkpoints that are still on disk."""
    return sorted(path.name for path in assignment.work_dir.glob("*/training/*.safetensors"))


def usable_checkpoints(assignment: Assignment) -> list[str]:
    """Return the names of the training's checkpoints that another attempt can go on from: those with a record."""
    return sorted(path.name for path in assignment.work_dir.glob("*/training/*.safetensors.record.json"))
