"""A training divided among several processes of this machine, started by torchrun.

Each is `workers.rank`, on a GPU of its own where there are GPUs. The first of them reports, keeps the training and
leaves what comes of it, all of it where a single process would.

Promise: none of them outlives this process, however that ends.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field

from app.contract.codes import FailureCode
from workers.compression.phases import Phase
from workers.messages import REPORT, Assignment, AttemptFailed, ErrorReport, Message
from workers.stages import compute, names
from workers.stages.context import Context

log = logging.getLogger(__name__)

HERE = "127.0.0.1"

LOST = ErrorReport(
    code=FailureCode.COMPUTE_KILLED,
    message="one of the processes that train together was killed, as the kernel does when memory runs out",
    stage=names.DISTILL,
)
"""The failure when the processes end and none of them says why."""


class RankRequest(Message):
    """What each of the processes is told: where the job stands, and which phase of it to train."""

    assignment: Assignment = Field(description="with the kind of device alone, and the threads of one process")
    fingerprint: str
    turn: int
    results: dict[str, Path]
    phase: int


def train_in_processes(context: Context, phase: Phase, processes: int) -> None:
    """Has a phase trained by so many processes; their reports become this one's.

    Raises AttemptFailed where one of them fails.
    """
    # They need what this process keeps of the GPU unused.
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        request = Path(scratch) / "request.json"
        request.write_text(request_for(context, phase, processes).model_dump_json())
        follow(context, torchrun(processes, Path(scratch), "workers.rank", str(request)))


def request_for(context: Context, phase: Phase, processes: int) -> RankRequest:
    threads = max(1, torch.get_num_threads() // processes)
    changes = {"device": compute.device(context).type, "threads": threads}
    return RankRequest(
        assignment=context.assignment.model_copy(update=changes),
        fingerprint=context.bench.fingerprint,
        turn=context.turn,
        results=context.results,
        phase=phase.number,
    )


def torchrun(processes: int, scratch: Path, module: str, *arguments: str) -> list[str]:
    """The command that runs a module in so many processes. Without an address it would ask for this host's by name."""
    options = ["--standalone", f"--nproc-per-node={processes}", f"--local-addr={HERE}", f"--log-dir={scratch}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "--module", module, *arguments]


def follow(context: Context, command: Sequence[str]) -> None:
    """Pass on what the processes of a command report until all have ended. Raises AttemptFailed where one fails."""
    failure: ErrorReport | None = None
    # Their standard input is a lifeline. torchrun gives each a session of its own, so no signal to ours reaches them.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace", env=environment()
    ) as process:
        for line in process.stdout or ():
            try:
                report = REPORT.validate_json(line)
            except ValueError:
                log.warning("a rank said what is no report: %s", line[:200].rstrip())
                continue
            if isinstance(report, ErrorReport):
                # Those that follow are of the others, which miss the one that failed.
                failure = failure or report
            else:
                context.report(report)
    if process.returncode != 0:
        raise AttemptFailed.reported(failure or LOST)


def environment() -> Mapping[str, str]:
    """This process's, with the modules that it can import."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
