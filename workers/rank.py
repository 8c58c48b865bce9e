"""One of the processes that train together: torchrun starts them, for `workers.stages.ranks`, which waits for them.

It is given the name of a file with a RankRequest and reports in JSON lines, as the computing child does: the first
process what there is to report, the others only how they fail. It ends when its standard input does.
"""

import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import distributed

from app.contract.recipe import Distillation
from app.lifeline import end_with_parent
from workers.compression.training.parallel import DataParallel, PeerLost, Ranks
from workers.runner import prepare_torch, take_standard_output
from workers.stages import compress, names, training
from workers.stages.context import Context
from workers.stages.failures import describe
from workers.stages.ranks import RankRequest
from workers.stages.registry import STAGES
from workers.stages.stage import Schedule
from workers.stages.workbench import Workbench

log = logging.getLogger(__name__)

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: while one of them writes all that is trained. A dead one is noticed at once,
by torchrun."""


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    reports = take_standard_output()
    end_with_parent(sys.stdin.fileno(), grace_seconds=0)
    request = RankRequest.model_validate_json(Path(sys.argv[1]).read_bytes())

    def report(message: BaseModel) -> None:
        reports.write(message.model_dump_json() + "\n")
        reports.flush()

    try:
        train(request, report)
    except PeerLost:
        # The one that is gone has said why, or was killed; if none is gone, only this tells what failed.
        log.warning("another process seems to be gone", exc_info=True)
        return 1
    except Exception as error:
        log.exception("the training failed")
        report(describe(error, names.DISTILL))
        return 1
    return 0


def train(request: RankRequest, report: Callable[[BaseModel], None]) -> None:
    """Take part in the training that is asked for, to its end."""
    device = request.assignment.device
    distributed.init_process_group(BACKENDS[device], timeout=PATIENCE)
    rank = distributed.get_rank()
    if device == "cuda":
        torch.cuda.set_device(rank)
        device = f"cuda:{rank}"
    assignment = request.assignment.model_copy(update={"device": device})
    prepare_torch(assignment)
    context = Context(
        assignment,
        Workbench(assignment.work_dir, assignment.attempt, request.fingerprint),
        report if rank == 0 else lambda message: None,
        Schedule.of(assignment.recipe, STAGES),
    ).at(request.turn)
    context.results, context.stage = dict(request.results), names.DISTILL
    ranks = ranks_of(training.asked(context))
    training.train_phase(context, compress.schedule(context)[request.phase], ranks)
    ranks.wait()
    distributed.destroy_process_group()


def ranks_of(distillation: Distillation) -> Ranks:
    """How the recipe has the processes of torch.distributed's default group share the work."""
    if not distillation.sharded:
        return DataParallel()
    # It leans on parts of torch that may change their place, which those who do not shard need not suffer from.
    from workers.compression.training.sharded import Sharded

    return Sharded()


if __name__ == "__main__":
    sys.exit(main())
