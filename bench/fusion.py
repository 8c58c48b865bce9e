"""What fewer blocks, narrower MLPs and factors cost, and what tokens of distillation win back of it.

    python -m bench.fusion MODEL --calibration A.txt B.txt --out C.txt --results rows.jsonl \
        --rows drop fusion fusegpt width hybrid kronecker --tokens 0 65536 262144
    python -m bench.fusion MODEL … --results rows.jsonl --rows auto

calibrates on equally many windows of the first half of A and of every further text, evaluates on the second half of A
("in") and on C ("out"). Each row is added to the results as soon as it is there, and one that is there already is not
computed again, nor which blocks its method takes: rows can be asked for one at a time, and other code needs another
file. `bench.curves` draws them. The first two rows are always the dense model and the one that has lost as many blocks
as the ratio asks for: the gap of a row is that of its log-perplexity to the dense model, as a fraction of the gap that
dropping leaves.

Tokens are those of local distillation for `fusion` and `fusegpt`, and those of logit distillation of the whole model,
on the same texts, for rows that end in `+logits`; other rows take none. `width+groups` narrows attention as well, to
`--key-value-heads`, by default to the most below all; for another number name other results.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from workers.compression.math.allocation import measured_plan
from workers.compression.spec.catalog import is_measured
from workers.compression.spec.sizes import resized_plan

from bench.quality import perplexity, spread, windows
from workers.compression.choice import trials
from workers.compression.math.sensitivity import measure
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.spec.heads import feasible_key_value_heads
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings

LOGITS = "+logits"
GROUPS = "+groups"
LOCAL = ("fusion", "fusegpt")
COMPRESSED = ("drop", "width", f"width{GROUPS}", "hybrid", "kronecker", "fusion")
ROWS = (*COMPRESSED, "fusegpt", *(name + LOGITS for name in COMPRESSED), "auto", f"auto{LOGITS}")
LEARNING = DistillationSettings(tokens=0, batch_size=2, learning_rate=7e-5)
HARMED = 3e-4
"""The learning rate for what lost blocks and was not refitted: it has more to learn, and less to lose."""

TRAINED_LENGTH = 512


@dataclass(frozen=True)
class Row:
    """One measured model. `seconds` are those of making it; `removed` the blocks that it has lost, in that order."""

    name: str
    tokens: int
    ratio: float
    inside: float
    outside: float
    seconds: float
    removed: tuple[int, ...] = ()


class Results:
    """The rows of a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = {(row.name, row.tokens): row for row in (Row(**json.loads(line)) for line in lines)}

    def add(self, row: Row) -> None:
        self.rows[row.name, row.tokens] = row
        with self.path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")

    def gaps(self, row: Row) -> tuple[float, float]:
        """In and out, as a fraction of what dropping leaves."""
        dense, dropped = self.rows["dense", 0], self.rows["drop", 0]
        inside = math.log(row.inside / dense.inside) / math.log(dropped.inside / dense.inside)
        return inside, math.log(row.outside / dense.outside) / math.log(dropped.outside / dense.outside)

    def markdown(self, row: Row) -> str:
        inside, outside = self.gaps(row)
        return (
            f"| {row.name} | {row.tokens:,} | {row.ratio:.3f} | {row.inside:.1f} | {row.outside:.1f} "
            f"| {inside:.2f} | {outside:.2f} | {row.seconds:.0f} |"
        )


HEAD = "| method | tokens | ratio | in | out | gap in | gap out | s |\n|---|---|---|---|---|---|---|---|"


class Printer(Observer):
    """Prints the loss at each checkpoint."""

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        print(f"step {checkpoint.step} of {checkpoint.steps}: loss {checkpoint.losses[-1]:.3f}", flush=True)
        return checkpoint


@dataclass(frozen=True)
class Bench:
    """One model and its texts, as token ids [sequences, length]; `text` is all that may be trained on."""

    original: StreamedModel
    calibration: Tensor
    text: Tensor
    inside: Tensor
    outside: Tensor
    ratio: float
    results: Results
    key_value_heads: int | None = None

    def row(self, name: str, tokens: int) -> Row:
        started = time.monotonic()
        parts = [] if name == "dense" else self.parts(name.removesuffix(LOGITS), tokens)
        edited = EditedModel(self.original, parts)
        whole = edited.whole()
        if name.endswith(LOGITS):
            whole = self.trained(whole, tokens, HARMED if name == f"drop{LOGITS}" else LEARNING.learning_rate)
        seconds = time.monotonic() - started
        whole.eval()
        return Row(
            name,
            tokens,
            self.original.inventory.total_parameters / edited.inventory.total_parameters,
            perplexity(whole, self.inside),
            perplexity(whole, self.outside),
            seconds,
            tuple(block for part in parts for block in part.removed),
        )

    def parts(self, name: str, tokens: int) -> list[CompressedPart]:
        """Those of a method; which blocks go is taken over from a row of the method that is there already."""
        if name == "auto":
            name = self.chosen()
        if name == "drop":
            return self.removals("drop", "macro_influence")
        measured = {}
        if is_measured(name):
            measured = {
                site: found for part in measure(self.original, self.calibration) for site, found in part.items()
            }
        heads = self.fewer_heads() if name.endswith(GROUPS) else None
        plan = measured_plan(self.original.inventory, name.removesuffix(GROUPS), self.ratio, measured, heads)
        if name in LOCAL:
            plan = dataclasses.replace(plan, absorption_tokens=tokens)
        parts = self.removals("fusion", plan.criterion) if name == "fusion" else []
        for part in compress(
            self.original,
            plan,
            self.calibration,
            sensitivities=measured,
            start=len(parts),
            finished=parts.__getitem__,
        ):
            parts.append(part)
        return parts

    def fewer_heads(self) -> int:
        return self.key_value_heads or max(feasible_key_value_heads(self.original.inventory))

    def removals(self, row: str, criterion: str | None) -> list[CompressedPart]:
        plan = dataclasses.replace(resized_plan(self.original.inventory, "fusion", self.ratio), criterion=criterion)
        known = next((found for (name, _), found in self.results.rows.items() if name == row), None)
        if known is None:
            return list(islice(compress(self.original, plan, self.calibration), plan.removed))
        return [CompressedPart(i, "removed", {}, {}, {}, removed=(block,)) for i, block in enumerate(known.removed)]

    def chosen(self) -> str:
        """What `auto` takes; says what each trial cost."""
        tried, started = {}, time.monotonic()
        for trial in trials(self.original, self.ratio, self.calibration):
            seconds = time.monotonic() - started
            print(f"trial of {trial.method}: perplexity {trial.perplexity:.2f}, {seconds:.0f} s", flush=True)
            tried[trial.method], started = trial.perplexity, time.monotonic()
        return min(tried, key=tried.__getitem__)

    def trained(self, student: Any, tokens: int, learning_rate: float) -> Any:
        settings = dataclasses.replace(LEARNING, tokens=tokens, learning_rate=learning_rate)
        length = min(TRAINED_LENGTH, self.text.shape[1])
        windows_of_text = self.text[:, : self.text.shape[1] // length * length].reshape(-1, length)
        student = student.float()
        distil(
            self.original.whole(),
            student,
            windows_of_text,
            settings,
            compute_dtype=self.original.dtype,
            observer=Printer(),
        )
        return student.to(self.original.dtype)


def main() -> None:
    options = arguments()
    bench = opened(options)
    print(HEAD)
    for name, tokens in asked(options.rows, options.tokens):
        if (name, tokens) not in bench.results.rows:
            bench.results.add(bench.row(name, tokens))
        if ("drop", 0) in bench.results.rows:
            print(bench.results.markdown(bench.results.rows[name, tokens]), flush=True)


def asked(names: list[str], budgets: list[int]) -> Iterator[tuple[str, int]]:
    """Rows and their tokens, those by which the others are measured first."""
    yield "dense", 0
    yield "drop", 0
    for name in names:
        if name == "fusegpt" or name.endswith(LOGITS):
            yield from ((name, tokens) for tokens in budgets if tokens)
        elif name == "fusion":
            yield from ((name, tokens) for tokens in budgets)
        elif name != "drop":
            yield name, 0


def opened(options: argparse.Namespace) -> Bench:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    first, *others = (windows(tokenizer, path, options.length) for path in options.calibration)
    half = len(first) // 2
    texts = (first[:half], *others)
    each = options.sequences // len(texts)
    return Bench(
        original=StreamedModel.open(options.model, dtype=getattr(torch, options.dtype)),
        calibration=torch.cat([spread(text, each) for text in texts]),
        text=torch.cat(texts),
        inside=spread(first[half:], options.windows),
        outside=spread(windows(tokenizer, options.out, options.length), options.windows),
        ratio=options.ratio,
        results=Results(options.results),
        key_value_heads=options.key_value_heads,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="rows are read from this file and added to it")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["drop", "fusion", "width", "hybrid"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[0])
    parser.add_argument("--ratio", type=float, default=1.27)
    parser.add_argument("--key-value-heads", type=int, help="those that `width+groups` leaves")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
