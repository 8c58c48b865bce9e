"""Divide a training among several processes of this machine, which torchrun starts.

Each process is `workers.rank`, on a GPU of its own if there are GPUs. Rank 0 reports, writes the checkpoints and leaves
the result, exactly as a single process would.

Promise: no rank outlives this process, however it ends.
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

from modelpress.contract.codes import FailureCode
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
"""The failure to report when no process of a failed training has reported one."""


class RankRequest(Message):
    """The input of each rank: the state of the job, and the phase to train."""

    assignment: Assignment = Field(
        description="the job's assignment, with `device` 'cuda' or 'cpu' without an index and `threads` for one rank"
    )
    fingerprint: str = Field(description="hash of everything that the job's results depend on")
    turn: int = Field(description="index into the recipe's ratios")
    results: dict[str, Path] = Field(description="directory of each finished stage's result")
    phase: int = Field(description="number of the phase to train, from 0")


def train_in_processes(context: Context, phase: Phase, processes: int) -> None:
    """Train a phase in several processes, and forward their reports.

    Raises:
        AttemptFailed: one of them failed.
    """
    # The ranks need the GPU memory that this process has cached.
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        request = Path(scratch) / "request.json"
        request.write_text(request_for(context, phase, processes).model_dump_json())
        follow(context, torchrun(processes, Path(scratch), "workers.rank", str(request)))


def request_for(context: Context, phase: Phase, processes: int) -> RankRequest:
    """Return the request that each of `processes` ranks reads."""
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
    """Return the command that runs a module in `processes` processes; torchrun writes its logs to `scratch`."""
    # Without an address torchrun would look this host up by its name.
    options = ["--standalone", f"--nproc-per-node={processes}", f"--local-addr={HERE}", f"--log-dir={scratch}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "--module", module, *arguments]


def follow(context: Context, command: Sequence[str]) -> None:
    """Run a command and forward the reports of its processes until all have ended.

    Raises:
        AttemptFailed: the command failed. It carries the first failure that a process reported, or LOST.
    """
    failure: ErrorReport | None = None
    # The ranks end when their standard input closes: torchrun puts each into a session of its own, so that no signal
    # to this process's group reaches them.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace", env=environment()
    ) as process:
        for line in process.stdout or ():
            try:
                report = REPORT.validate_json(line)
            except ValueError:
                log.warning("a rank wrote a line that is not a report: %s", line[:200].rstrip())
                continue
            if isinstance(report, ErrorReport):
                # The other ranks fail too, because they wait for the one that failed first.
                failure = failure or report
            else:
                context.report(report)
    if process.returncode != 0:
        raise AttemptFailed.reported(failure or LOST)


def environment() -> Mapping[str, str]:
    """Return this process's environment with its import path, so that the ranks import the same modules."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
