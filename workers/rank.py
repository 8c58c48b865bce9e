"""One of the processes that train together: torchrun starts them, for `workers.stages.ranks`, which waits for them.

It is given the name of a file with a RankRequest and reports in JSON lines, as the computing child does: the first
process what there is to report, the others only how they fail. It ends when its standard input does.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import distributed

from app.contract.job import Stage
from app.lifeline import end_with_parent
from workers.compression.distillation.parallel import DataParallel, PeerLost
from workers.compression.distillation.sharded import Sharded
from workers.runner import prepare_torch, take_standard_output
from workers.stages import compress, training
from workers.stages.context import Context
from workers.stages.failures import describe
from workers.stages.ranks import RankRequest
from workers.stages.workbench import Workbench

log = logging.getLogger(__name__)

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


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
        # The one that is gone has said why, or was killed.
        return 1
    except Exception as error:
        log.exception("the training failed")
        report(describe(error, Stage.DISTILL))
        return 1
    return 0


def train(request: RankRequest, report: Callable[[BaseModel], None]) -> None:
    """Take part in the training that is asked for, to its end."""
    device = request.assignment.device
    distributed.init_process_group(BACKENDS[device])
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
    ).at(request.turn)
    context.results, context.stage = dict(request.results), Stage.DISTILL
    ranks = Sharded() if training.asked(context).sharded else DataParallel()
    training.train_phase(context, compress.schedule(context)[request.phase], ranks)
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
