"""The computing child of the soak: walks through durable stages as the real one does, and computes nothing.

What it packages follows from the recipe alone, so that a job which was disturbed must end with the same bytes.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from app.lifeline import end_with_parent
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Comparison, Metrics
from modelpress.contract.recipe import Recipe
from workers.messages import Assignment, DoneReport, ErrorReport, Message, ProgressReport, ResumedReport
from workers.stages.workbench import Workbench, fingerprint

STAGES = ("inspect", "calibrate", "compress", "evaluate", "package")
WEIGHTS = "model.safetensors"
WEIGHTS_BYTES = 1 << 18
KIND = "chaos"
"""The name in a recipe's metadata under which it says how its computation goes."""
PLAIN, SLOW, POISON, FAILS = "plain", "slow", "poison", "fails"
METRICS = Metrics(
    parameters=1, bytes=1, perplexity={}, prefill_tokens_per_second=None, decode_tokens_per_second=None, sample=None
)


def weights(recipe: Recipe) -> bytes:
    """Return the bytes that a recipe's job ends with."""
    return hashlib.sha256(str(recipe.seed).encode()).digest() * (WEIGHTS_BYTES // 32)


def report(message: Message) -> None:
    """Tell the supervisor."""
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()


def main() -> int:
    """Walk through the stages of the assignment on standard input, and return the exit status."""
    assignment = Assignment.model_validate_json(sys.stdin.buffer.readline())
    end_with_parent(sys.stdin.fileno(), grace_seconds=0)
    kind = assignment.recipe.metadata.get(KIND, PLAIN)
    bench = Workbench(assignment.work_dir, assignment.attempt, fingerprint({"seed": assignment.recipe.seed}))
    for number, stage in enumerate(STAGES):
        report(ProgressReport(stage=stage, fraction=number / len(STAGES)))
        if bench.finished(stage) is not None:
            report(ResumedReport(stage=stage))
            continue
        time.sleep(random.uniform(0.0, 2.0 if kind == SLOW else 0.2))  # noqa: S311 - nothing secret
        if kind == POISON and stage == "compress":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == FAILS and stage == "inspect":
            report(ErrorReport(code=FailureCode.NO_TOKENIZER, message="it has none", stage=stage))
            return 1
        (bench.begin(stage) / "result").write_text(stage)
        bench.finish(stage)
    report(
        DoneReport(package=package(assignment), achieved_ratio=1.0, metrics=Comparison(before=METRICS, after=METRICS))
    )
    return 0


def package(assignment: Assignment) -> Path:
    """Write the package of this attempt and return its directory."""
    directory = assignment.work_dir / str(assignment.attempt) / "made"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / WEIGHTS).write_bytes(weights(assignment.recipe))
    (directory / "config.json").write_text(json.dumps({"seed": assignment.recipe.seed}))
    return directory


if __name__ == "__main__":
    sys.exit(main())
