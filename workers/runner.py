"""The computing child: walks one attempt through its stages. The only process that computes.

It is started by the supervisor, reads its assignment from standard input and reports in JSON lines. It holds no secret
and no connection. It ends with the supervisor: when standard input closes, nobody is left to report to.
"""

import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO

import numpy
import torch
from pydantic import BaseModel

from app.contract.job import Stage
from app.contract.recipe import Recipe
from workers.compression.files import file_sha256
from workers.messages import Assignment
from workers.stages import (
    calibrate,
    compress,
    distill,
    evaluate,
    inspect,
    memory,
    package,
    plan,
    sweep,
    tasks,
    verify,
    write,
)
from workers.stages.context import ONCE, Context
from workers.stages.failures import describe
from workers.stages.workbench import Workbench, directory_identity, fingerprint

log = logging.getLogger(__name__)

STAGES: Mapping[Stage, ModuleType] = {
    Stage.INSPECT: inspect,
    Stage.CALIBRATE: calibrate,
    Stage.PLAN: plan,
    Stage.COMPRESS: compress,
    Stage.DISTILL: distill,
    Stage.WRITE: write,
    Stage.EVALUATE: evaluate,
    Stage.PACKAGE: package,
    Stage.VERIFY: verify,
}
"""In the order in which they run, all but ONCE for each ratio of the recipe. Each reads the results of those before it
and leaves a durable one of its own. A recipe without distillation has no such stage."""

RESULT_VERSION = 6
"""Raise it when a stage's result changes its meaning: results of an older worker are then computed again."""


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    reports = take_standard_output()
    assignment = Assignment.model_validate_json(sys.stdin.readline())
    threading.Thread(target=exit_with_supervisor, daemon=True).start()

    def report(message: BaseModel) -> None:
        reports.write(message.model_dump_json() + "\n")
        reports.flush()

    return 0 if walk(assignment, report) else 1


def take_standard_output() -> IO[str]:
    """Keep the pipe to the supervisor for reports; whatever a library prints goes to the log."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return reports


def exit_with_supervisor() -> None:
    sys.stdin.read()
    # The whole session, which this process leads: a fresh process that verifies a package has no supervisor of its own.
    os.killpg(os.getpgrp(), signal.SIGKILL)


def walk(assignment: Assignment, report: Callable[[BaseModel], None]) -> bool:
    """Take one attempt through every stage that is not yet finished. Reports its end; returns whether it succeeded."""
    prepare_torch(assignment)
    context = Context(assignment, Workbench(assignment.work_dir, assignment.attempt, identity(assignment)), report)
    try:
        write.require_libraries(assignment.recipe)
        tasks.require_library(assignment.recipe)
        for stage in ONCE:
            take(context, stage)
        finished = []
        for turn in range(len(assignment.recipe.ratios)):
            context = context.at(turn)
            for stage in STAGES:
                if stage not in ONCE:
                    take(context, stage)
            finished.append(context)
        report(sweep.done(finished) if assignment.recipe.is_sweep else verify.done(context))
    except Exception as error:
        log.exception("the stage %s failed", context.stage)
        report(describe(error, context.stage))
        return False
    return True


def take(context: Context, stage: Stage) -> None:
    """Have the stage's result, where the recipe asks for it."""
    if is_wanted(stage, context.assignment.recipe):
        context.stage = stage
        context.results[stage] = run(context, STAGES[stage])


def is_wanted(stage: Stage, recipe: Recipe) -> bool:
    return stage != Stage.DISTILL or recipe.distillation is not None


def run(context: Context, module: ModuleType) -> Path:
    """The stage's result: an earlier attempt's, or computed now."""
    finished = context.bench.finished(context.stage)
    if finished is not None:
        return finished
    context.progress(0.0)
    module.run(context, context.bench.begin(context.stage))
    if context.assignment.memory_bytes is not None:
        memory.give_back()
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


if __name__ == "__main__":
    sys.exit(main())
