"""One rank of a training in several processes: torchrun starts it for `workers.stages.ranks`, which waits for all.

Its argument is a file with a RankRequest. It reports as JSON lines, like the computing child: rank 0 reports
everything, the others only a failure. It ends when its standard input closes.
"""

import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import distributed

from app.lifeline import end_with_parent
from modelpress.contract.codes import FailureCode
from modelpress.contract.distillation import Distillation
from workers.compression.training.parallel import DataParallel, ParallelStrategy, PeerLost
from workers.messages import AttemptFailed
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
"""Backend of torch.distributed for each kind of device."""

KNOWN_BACKENDS = {"nccl": distributed.is_nccl_available, "gloo": distributed.is_gloo_available}
"""Whether this build of torch has a backend."""

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others, such as for rank 0 to write a checkpoint; a dead rank is noticed at once."""


def main() -> int:
    """Train as requested, and return the exit status: 0, or 1 after a failure."""
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
        # The rank that is gone has reported why, or was killed. If none is gone, this is the only trace of the failure.
        log.warning("another rank seems to be gone", exc_info=True)
        return 1
    except Exception as error:  # whatever it is, `describe` gives the job a code for it
        log.exception("the training failed")
        report(describe(error, names.DISTILL))
        return 1
    return 0


def train(request: RankRequest, report: Callable[[BaseModel], None]) -> None:
    """Join the process group, train the requested phase, and leave the group when all ranks are done."""
    device = request.assignment.device
    distributed.init_process_group(backend_of(device), timeout=PATIENCE)
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
        Schedule.of(assignment.recipe, STAGES, assignment.expected),
    ).at(request.turn)
    context.results, context.stage = dict(request.results), names.DISTILL
    parallel = strategy_of(training.requested(context))
    training.train_phase(context, compress.schedule(context)[request.phase], parallel)
    parallel.wait()
    distributed.destroy_process_group()


def backend_of(device: str) -> str:
    """Return the backend of torch.distributed for 'cuda' or 'cpu'.

    Raises:
        AttemptFailed: this build of torch lacks it.
    """
    backend = BACKENDS[device]
    if not KNOWN_BACKENDS[backend]():
        raise AttemptFailed(
            FailureCode.MISSING_EXTRA,
            f"training in several processes needs {backend}, which this worker's build of torch {torch.__version__} "
            "lacks; install a build that has it, or set MODELPRESS_PROCESSES=1",
        )
    return backend


def strategy_of(distillation: Distillation) -> ParallelStrategy:
    """Return how the ranks of the default process group share the training."""
    if not distillation.sharded:
        return DataParallel()
    # Imported only here: it needs a private module of torch, which may move.
    from workers.compression.training.sharded import Sharded

    return Sharded()


if __name__ == "__main__":
    sys.exit(main())
