"""The stages of a job, in the order in which they run.

Each stage reads the results of the ones before it and leaves a durable one of its own; an attempt skips what an earlier
attempt has finished.
"""

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy
import torch
from pydantic import BaseModel

from app.contract.job import Stage
from workers.messages import Assignment
from workers.stages import calibrate, compress, evaluate, inspect, package, plan, verify
from workers.stages.context import Context
from workers.stages.failures import describe
from workers.stages.workbench import Workbench, directory_identity, file_sha256, fingerprint

log = logging.getLogger(__name__)

RESULT_VERSION = 1
"""Raise it when a stage's result changes its meaning: results of an older worker are then computed again."""

STAGES: Mapping[Stage, ModuleType] = {
    Stage.INSPECT: inspect,
    Stage.CALIBRATE: calibrate,
    Stage.PLAN: plan,
    Stage.COMPRESS: compress,
    Stage.EVALUATE: evaluate,
    Stage.PACKAGE: package,
    Stage.VERIFY: verify,
}


def walk(assignment: Assignment, report: Callable[[BaseModel], None]) -> bool:
    """Take one attempt through every stage that is not yet finished. Reports its end; returns whether it succeeded."""
    prepare_torch(assignment)
    context = Context(assignment, Workbench(assignment.work_dir, assignment.attempt, identity(assignment)), report)
    try:
        for stage, module in STAGES.items():
            context.stage = stage
            context.results[stage] = run(context, module)
        report(verify.done(context))
    except Exception as error:  # noqa: BLE001 - every failure becomes a report with a code; the trace is logged
        log.exception("stage_failed: %s", context.stage)
        report(describe(error, context.stage))
        return False
    return True


def run(context: Context, module: ModuleType) -> Path:
    finished = context.bench.finished(context.stage)
    if finished is not None:
        return finished
    context.progress(0.0)
    module.run(context, context.bench.begin(context.stage))
    return context.bench.finish(context.stage)


def prepare_torch(assignment: Assignment) -> None:
    if assignment.threads is not None:
        torch.set_num_threads(assignment.threads)
    seed = assignment.recipe.seed
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def identity(assignment: Assignment) -> str:
    """Fingerprint of everything that the results of the stages depend on."""
    return fingerprint(
        {
            "version": RESULT_VERSION,
            "recipe": assignment.recipe.model_dump(mode="json", exclude={"metadata"}),
            "model": directory_identity(assignment.model_path),
            "texts": {reference: file_sha256(path) for reference, path in assignment.texts.items()},
        }
    )
