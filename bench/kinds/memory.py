"""The greatest memory of a whole job, stage by stage, as the worker's child walks it.

The job runs in a process of its own, in the environment that the service gives such a process, and is told to stay
below a number of bytes. The model has random weights and a tokenizer whose tokens are bytes.
"""

import os
import random
import re
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.experiment import Case, Experiment, Place, Row, Table
from bench.formatting import duration
from bench.models import model_directory
from modelpress.contract.recipe import Calibration, Evaluation, Recipe
from workers.child import SPARING, child_environment
from workers.messages import Assignment, ProgressReport
from workers.runner import walk

LETTERS = 10**6


class JobSize(Case):
    """A job on one model."""

    model: str = Field(description="'random:HIDDENxBLOCKSxMLP'")
    method: str
    ratio: float = Field(gt=1, description="the smaller, the greater the ranks, and the more memory a fit takes")
    sequences: int = Field(2, description="of calibration")
    windows: int = Field(2, description="of evaluation")
    length: int = 1024
    memory_bytes: int = Field(description="what the job is told to stay below")


class Peaks(Row):
    """Greatest resident memory of the process up to the end of each stage, in bytes, and the seconds of the job."""

    bytes: dict[str, int]
    seconds: float | None


class Memory(Experiment[JobSize, Peaks]):
    """Peak memory of whole jobs."""

    row: ClassVar[type[Row]] = Peaks

    kind: Literal["memory"]

    def measure(self, cases: Sequence[JobSize], place: Place) -> Iterator[Peaks]:
        """Walk each job in a fresh process."""
        for case in cases:
            directory = model_directory(case.model, place.scratch)
            byte_tokenizer().save_pretrained(directory)
            command = [
                sys.executable,
                "-m",
                "bench.kinds.memory",
                case.model_dump_json(),
                str(directory),
                str(place.scratch),
            ]
            environment = os.environ | child_environment(place.scratch, SPARING)
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            yield Peaks.model_validate_json(output.splitlines()[-1])

    def table(self, rows: Sequence[Peaks]) -> Table:
        """Return a row for each case, with a column for each stage."""
        stages = list(dict.fromkeys(stage for row in rows for stage in row.bytes))
        header = ("job", *(f"{stage}, MB" for stage in stages), "whole job")
        return Table(
            header,
            tuple(
                (row.case, *(f"{row.bytes[stage] / 1e6:,.0f}" for stage in stages), duration(row.seconds))
                for row in rows
            ),
        )


def walk_job(case: JobSize, model: Path, scratch: Path) -> Peaks:
    """Walk the job in this process and return its peaks."""
    seen, unseen = (write_letters(scratch / f"{name}.txt", seed) for seed, name in enumerate(("seen", "unseen")))
    recipe = Recipe.model_validate(
        {
            "model": "local:model",
            "target_ratio": case.ratio,
            "method": case.method,
            "calibration": Calibration(datasets=("local:seen",), sequences=case.sequences, length=case.length),
            "evaluation": Evaluation(
                datasets=("local:unseen",), window=case.length, max_tokens=case.windows * case.length
            ),
        }
    )
    assignment = Assignment(
        job_id="job",
        attempt=1,
        recipe=recipe,
        model_path=model,
        texts={"local:seen": seen, "local:unseen": unseen},
        work_dir=scratch / "job",
        device="cpu",
        threads=None,
        memory_bytes=case.memory_bytes,
    )
    peaks: dict[str, int] = {}
    started = time.monotonic()

    def report(message: BaseModel) -> None:
        if isinstance(message, ProgressReport):
            peaks[str(message.stage)] = peak()

    assert walk(assignment, report), "the job failed; its reason is above"
    return Peaks(case=case.name, bytes=peaks, seconds=time.monotonic() - started)


def peak() -> int:
    """Return the greatest resident memory of this process so far, in bytes (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte."""
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write_letters(path: Path, seed: int) -> Path:
    """Write random letters, each of them a token."""
    generator = random.Random(seed)  # noqa: S311 - any letters do
    path.write_text("".join(generator.choices(string.ascii_letters, k=LETTERS)))
    return path


if __name__ == "__main__":
    size, model, scratch = sys.argv[1:]
    print(walk_job(JobSize.model_validate_json(size), Path(model), Path(scratch)).model_dump_json())
