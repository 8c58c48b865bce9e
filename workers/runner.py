"""The computing child, the only process that computes: it runs one attempt through its stages.

The supervisor starts it. It reads its assignment from standard input and reports as JSON lines. It holds no secret and
no connection. It ends with the supervisor, when standard input closes.
"""

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy
import psutil
import torch
from pydantic import BaseModel

from modelpress.spec.files import file_sha256
from workers.messages import Assignment
from workers.stages import memory, sweep, tasks, verify, write
from workers.stages.context import Context
from workers.stages.failures import describe
from workers.stages.meter import Meter
from workers.stages.registry import STAGES
from workers.stages.stage import Schedule, Stage
from workers.stages.workbench import Workbench, directory_identity, fingerprint

log = logging.getLogger(__name__)

MEASURED = Meter()

RESULT_VERSION = 7
"""Version of all stage results. Raise it when a stage would store something else, or read it differently: a job that is
half done then computes its stages again."""


def main(meter: Meter = MEASURED) -> int:
    """Run the attempt that standard input assigns, and return the exit status: 0, or 1 after a failure."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    reports = take_standard_output()
    assignment = Assignment.model_validate_json(sys.stdin.readline())
    threading.Thread(target=exit_with_supervisor, daemon=True).start()

    def report(message: BaseModel) -> None:
        reports.write(message.model_dump_json() + "\n")
        reports.flush()

    starting = time.time() - psutil.Process().create_time()
    return 0 if walk(assignment, report, meter, starting=starting) else 1


def take_standard_output() -> IO[str]:
    """Return a stream for reports to the supervisor, and send everything else that is printed to the log."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return reports


def exit_with_supervisor() -> None:
    """Wait until standard input closes, then kill this process and all of its children."""
    sys.stdin.read()
    # The whole group, because fresh processes, such as those that verify a package, do not watch the supervisor.
    os.killpg(os.getpgrp(), signal.SIGKILL)


def walk(
    assignment: Assignment, report: Callable[[BaseModel], None], meter: Meter = MEASURED, *, starting: float = 0.0
) -> bool:
    """Run one attempt through every unfinished stage and report its end; return whether it succeeded.

    `starting` is how many seconds the process took until now.
    """
    prepare_torch(assignment)
    schedule = Schedule.of(assignment.recipe, STAGES, assignment.expected)
    bench = Workbench(assignment.work_dir, assignment.attempt, identity(assignment))
    context = Context(
        assignment, bench, report, schedule, stage=schedule.stages[0].name, starting=starting, meter=meter
    )
    try:
        write.require_libraries(assignment.recipe)
        tasks.require_library(assignment.recipe)
        take(context, [stage for stage in schedule.stages if stage.once])
        finished = []
        for turn in range(len(assignment.recipe.ratios)):
            context = context.at(turn)
            take(context, [stage for stage in schedule.stages if not stage.once])
            finished.append(context)
        report(sweep.done(finished) if assignment.recipe.is_sweep else verify.done(context))
    except Exception as error:  # whatever it is, `describe` gives the job a code for it
        log.exception("the stage %s failed", context.stage)
        report(describe(error, context.stage))
        return False
    return True


def take(context: Context, stages: Iterable[Stage]) -> None:
    """Run the stages in order, reusing what earlier attempts have finished."""
    for stage in stages:
        context.stage = stage.name
        context.results[stage.name] = result_of(context, stage)


def result_of(context: Context, stage: Stage) -> Path:
    """Return the directory of the stage's result: a finished one, or the one made now."""
    finished = context.bench.finished(stage.name)
    if finished is not None:
        return finished
    context.progress(0.0)
    stage.run(context, context.bench.begin(stage.name))
    if context.assignment.memory_bytes is not None:
        memory.give_back()
    return context.bench.finish(stage.name)


def prepare_torch(assignment: Assignment) -> None:
    """Set the number of threads, and seed every random number generator with the recipe's seed."""
    if assignment.threads is not None:
        torch.set_num_threads(assignment.threads)
    seed = assignment.recipe.seed
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def identity(assignment: Assignment) -> str:
    """Return the fingerprint of everything that the results of the stages depend on."""
    return fingerprint(
        {
            "version": RESULT_VERSION,
            "recipe": assignment.recipe.model_dump(mode="json", exclude={"metadata", "device", "priority"}),
            "model": directory_identity(assignment.model_path),
            "texts": {reference: file_sha256(path) for reference, path in assignment.texts.items()},
        }
    )


if __name__ == "__main__":
    sys.exit(main())
