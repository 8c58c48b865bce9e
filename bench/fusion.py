"""What fewer blocks and narrower MLPs cost, without training.

    python -m bench.fusion MODEL_DIRECTORY --calibration A.txt B.txt --out C.txt --ratio 1.27

calibrates on equally many windows of the first half of A and of every further text, evaluates on the second half of A
("in") and on C ("out"), and prints one Markdown row for each method. The gap is that of the log-perplexity to the
dense model, as a fraction of the gap that dropping as many blocks as the ratio asks for leaves.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bench.quality import perplexity, spread, windows
from workers.compression.accounting.dimensions import intermediate_size_for
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.resizing.influence import removals
from workers.compression.resizing.realignment import realign
from workers.compression.resizing.width import narrow

SCORED = (4, 512)
"""Sequences and tokens of each by which blocks are scored."""


@dataclass(frozen=True)
class Bench:
    """One model and its texts, as token ids [sequences, length]."""

    original: StreamedModel
    calibration: Tensor
    inside: Tensor
    outside: Tensor
    ratio: float
    order: tuple[int, ...]

    def quality(self, model: EditedModel) -> tuple[float, float]:
        """Perplexity in and out of the calibration's domain."""
        whole = model.whole().eval()
        return perplexity(whole, self.inside), perplexity(whole, self.outside)


def main() -> None:
    bench = opened(arguments())
    dense = bench.quality(EditedModel(bench.original))
    print(f"dense: in {dense[0]:.2f}, out {dense[1]:.2f}")
    print("| method | ratio | in | out | gap in | gap out | s |\n|---|---|---|---|---|---|---|", flush=True)
    dropped: list[float] = []
    for name, method in METHODS.items():
        started = time.monotonic()
        model = method(bench)
        seconds = time.monotonic() - started
        ratio = bench.original.inventory.total_parameters / model.inventory.total_parameters
        after = bench.quality(model)
        gaps = [math.log(found / before) for found, before in zip(after, dense, strict=True)]
        dropped = dropped or gaps
        parts = " | ".join(f"{gap / whole:.2f}" for gap, whole in zip(gaps, dropped, strict=True))
        print(f"| {name} | {ratio:.3f} | {after[0]:.1f} | {after[1]:.1f} | {parts} | {seconds:.0f} |", flush=True)


def drop(bench: Bench) -> EditedModel:
    """As many blocks left out as the ratio asks for, by macro influence or in a given order."""
    model = EditedModel(bench.original)
    sequences, length = SCORED
    count = blocks_to_remove(bench)
    if bench.order:
        model.apply(CompressedPart(0, "depth", {}, {}, {}, bench.order[:count]))
        return model
    for index, (block, _) in enumerate(removals(model, bench.calibration[:sequences, :length], count)):
        model.apply(CompressedPart(index, "depth", {}, {}, {}, (block,)))
    return model


def blocks_to_remove(bench: Bench) -> int:
    inventory = bench.original.inventory
    budget = inventory.total_parameters / bench.ratio
    largest = max(inventory.block_parameters)
    return math.ceil((inventory.total_parameters - budget) / largest - 0.5)


def width(bench: Bench) -> EditedModel:
    size = intermediate_size_for(bench.original.inventory, bench.ratio)
    model = EditedModel(bench.original)
    return EditedModel(bench.original, narrow(model, size, bench.calibration, original=bench.original))


def realigned(bench: Bench) -> EditedModel:
    """The same blocks dropped, and every block from the first gap on refitted once."""
    model = drop(bench)
    list(realign(bench.original, model, bench.calibration))
    return model


METHODS: dict[str, Callable[[Bench], EditedModel]] = {
    "drop": drop,
    "width": width,
    "drop, realigned": realigned,
}
"""Dropping comes first: the others are measured by it."""


def opened(options: argparse.Namespace) -> Bench:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    first, *others = (windows(tokenizer, path, options.length) for path in options.calibration)
    half = len(first) // 2
    each = options.sequences // len(options.calibration)
    return Bench(
        original=StreamedModel.open(options.model, dtype=getattr(torch, options.dtype)),
        calibration=torch.cat([spread(text, each) for text in (first[:half], *others)]),
        inside=spread(first[half:], options.windows),
        outside=spread(windows(tokenizer, options.out, options.length), options.windows),
        ratio=options.ratio,
        order=tuple(options.order),
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=1.27)
    parser.add_argument(
        "--order", type=int, nargs="*", default=(), help="blocks in the order in which they are dropped"
    )
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
