"""The process that takes the steps, one after another, as far as `results.json` does not have them yet."""

import faulthandler
import gc
import logging
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from bench.gpu import checks, compiled, healing, measures, streaming
from bench.gpu.__main__ import AGAIN
from bench.gpu.command import parser
from bench.gpu.results import DONE, FAILED, SKIPPED, Figures, Results, StepResult, commit
from bench.gpu.setting import REAL, REHEARSED, Setting
from bench.gpu.weights import weights

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "safetensors")

STUCK = 15.0
"""Seconds beyond a step's limit after which the process ends: what the step waits for cannot be interrupted."""

LEISURE = 10
"""How many times longer a step may take in a rehearsal, on a CPU that others may keep busy."""


@dataclass(frozen=True)
class Step:
    """A check or a measurement, and the most seconds that it may take."""

    run: Callable[[Setting, Figures], None]
    limit: float

    @property
    def name(self) -> str:
        """The name by which the command line and the results know the step."""
        return getattr(self.run, "__name__", "heal")


STEPS = (
    Step(weights, 60),
    Step(measures.ceilings, 40),
    Step(checks.packages, 30),
    Step(measures.job, 75),
    Step(measures.distillation, 60),
    Step(streaming.streamed_large, 45),
    Step(checks.resume, 40),
    Step(checks.out_of_memory, 30),
    Step(checks.two_jobs, 30),
    Step(checks.factors, 75),
    Step(streaming.compressed_large, 60),
    Step(measures.decoding, 45),
    Step(measures.job_in_four_bits, 60),
    Step(compiled.compiled, 60),
    Step(streaming.streamed_middle, 75),
)
"""The steps, what matters most first: what a run has no time for is at the end."""


class TimeUp(BaseException):
    """A step has reached its limit. No Exception, so that no step takes it for one of its own."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the context after so many seconds."""

    def end(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    faulthandler.dump_traceback_later(seconds + STUCK, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def take(step: Step, setting: Setting, result: StepResult, left: float) -> None:
    """Run a step for at most its limit and what is left of the budget, and note how it ended."""
    if left <= 0:
        return result.end(SKIPPED, "no time was left")
    most = step.limit if setting.device.type == "cuda" else LEISURE * step.limit
    try:
        with limit(min(most, left)):
            step.run(setting, result.figures)
    except TimeUp:
        return result.end(FAILED, "it took too long")
    except Exception as error:
        # Each step is to be tried, whatever another one has met.
        log.exception("the step %s failed", step.name)
        trace = traceback.format_exc().splitlines()[-12:]
        return result.end(FAILED, "\n".join([str(error)[:2000], *trace]))
    return result.end(DONE)


def run(steps: Sequence[Step], setting: Setting, results: Results, ends: float) -> int:
    """Take the steps until the time `ends`; return 0 if all ended well, AGAIN where only another process can go on."""
    for step in steps:
        if results.has(step.name):
            continue
        result = results.begin(step.name)
        take(step, setting, result, ends - time.time())
        results.write()
        print(
            f"{step.name}: {result.status}, {result.seconds:.1f} s",
            dict(result.figures),
            result.error or "",
            flush=True,
        )
        if not _cleared(setting.device):
            return AGAIN
    return 0 if all(step.status == DONE for step in results.steps) else 1


def _cleared(device: torch.device) -> bool:
    """Give back the memory of the last step, and return whether the card still answers: some errors are for good."""
    gc.collect()
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        log.exception("the card does not answer any more")
        return False
    return True


def begun(path: Path, device: torch.device, *, rehearsal: bool) -> Results:
    """Return the results of an earlier process of the same run, or those of a run that begins now."""
    if path.exists():
        return Results.load(path)
    card, memory = platform.processor() or platform.machine(), 0
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card, memory = properties.name, properties.total_memory
    libraries = {name: version(name) for name in LIBRARIES}
    about = {"rehearsal": rehearsal, "card": card, "memory_bytes": memory, "commit": commit(), "libraries": libraries}
    return Results(path, about)


def main(arguments: list[str]) -> int:
    """Take the steps that the command line asks for; return the exit status."""
    found = parser(__doc__)
    found.add_argument("--scratch", type=Path, required=True)
    found.add_argument("--ends", type=float, required=True)
    asked = found.parse_args(arguments)
    device = torch.device("cpu" if asked.rehearse else "cuda")
    results = begun(asked.out / "results.json", device, rehearsal=asked.rehearse)
    steps: Sequence[Step] = STEPS
    if asked.heal is not None:
        steps = (STEPS[0], Step(partial(healing.heal, seconds=asked.heal), asked.heal + 60))
    if asked.only:
        steps = [step for step in steps if step.name in asked.only]
    setting = Setting(
        device,
        REHEARSED if asked.rehearse else REAL,
        asked.scratch,
        carried=None if asked.rehearse else asked.carried,
        out=asked.out,
        kept=asked.keep,
    )
    return run(steps, setting, results, asked.ends)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
