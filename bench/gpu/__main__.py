"""Run every check and measurement, and write a results file that is whole after every step.

python -m bench.gpu --out DIRECTORY             # on a GPU
python -m bench.gpu --rehearse --out DIRECTORY  # the same steps on the CPU, with tiny models
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.gpu import checks, healing, measures
from bench.gpu.results import Figures, Results, StepResult
from bench.gpu.setting import REAL, REHEARSED, Setting
from bench.gpu.weights import checkpoint_of, tokens_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A check or a measurement, and the most seconds that it may take."""

    run: Callable[[Setting], Figures]
    limit: int

    @property
    def name(self) -> str:
        """The name by which the command line and the results know the step."""
        return getattr(self.run, "__name__", "heal")


STEPS = (
    Step(measures.ceilings, 40),
    Step(checks.packages, 30),
    Step(measures.job, 75),
    Step(measures.distillation, 60),
    Step(checks.resume, 40),
    Step(checks.out_of_memory, 30),
    Step(checks.two_jobs, 30),
    Step(measures.streamed_large, 75),
    Step(checks.factors, 75),
    Step(measures.decoding, 45),
    Step(measures.job_in_four_bits, 60),
    Step(measures.streamed_middle, 75),
)
"""The steps, what matters most first: what a run has no time for is at the end."""

BUDGET = 440
"""Seconds after which no step begins, and the running one ends."""


class TimeUp(BaseException):
    """A step has reached its limit. No Exception, so that no step takes it for one of its own."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the context after so many seconds."""

    def end(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def take(step: Step, setting: Setting, left: float) -> StepResult:
    """Run a step for at most its limit and what is left of the budget, and return how it ended."""
    if left <= 0:
        return StepResult(step.name, "skipped", 0.0, error="no time was left")
    started = time.perf_counter()
    try:
        with limit(min(step.limit, left)):
            figures = step.run(setting)
    except TimeUp:
        return StepResult(step.name, "failed", time.perf_counter() - started, error="it took too long")
    except Exception as error:
        # Each step is to be tried, whatever another one has met.
        log.exception("the step %s failed", step.name)
        trace = traceback.format_exc().splitlines()[-12:]
        return StepResult(step.name, "failed", time.perf_counter() - started, error="\n".join([str(error), *trace]))
    finally:
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    return StepResult(step.name, "done", time.perf_counter() - started, figures)


def main(arguments: list[str]) -> int:
    """Run the steps that the command line asks for; return 0 if all of them ended well."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="where results.json goes")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU, with tiny models")
    parser.add_argument("--carried", type=Path, default=Path(".gpu"), help="what `python -m bench.gpu.carry` has made")
    parser.add_argument("--only", nargs="*", help="names of steps")
    parser.add_argument("--heal", type=float, metavar="SECONDS", help="instead of the steps, distil for so long")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together")
    asked = parser.parse_args(arguments)
    begun = time.perf_counter()
    device = torch.device("cpu" if asked.rehearse else "cuda")
    steps = STEPS if asked.heal is None else [Step(partial(healing.heal, seconds=asked.heal), int(asked.heal) + 60)]
    asked.out.mkdir(parents=True, exist_ok=True)
    results = Results.begin(asked.out / "results.json", device, rehearsal=asked.rehearse)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        sizes = REHEARSED if asked.rehearse else REAL
        place = Path(scratch)
        weights, texts = (
            (None, {}) if asked.rehearse else (checkpoint_of(asked.carried, place), tokens_of(asked.carried))
        )
        setting = Setting(device, sizes, place, weights, texts, asked.out)
        for step in steps:
            if asked.only and step.name not in asked.only:
                continue
            result = take(step, setting, asked.budget - (time.perf_counter() - begun))
            results.add(result)
            print(
                f"{result.name}: {result.status}, {result.seconds:.1f} s",
                result.figures,
                result.error or "",
                flush=True,
            )
    return 0 if all(each.status == "done" for each in results.steps) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
