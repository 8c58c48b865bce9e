"""Tokens per second of distillation, beside a loop that does nothing but what must be done.

    python -m bench.distil MODEL_DIRECTORY --text A.txt

trains two copies of the model without some of its middle blocks on windows of A, a few steps of the one and a few of
the other in turn, and prints one Markdown row for each turn and a last one for all. The bare loop is the teacher's
forward, the student's forward and backward, clipping and AdamW's step, with the same batch, dtype and optimizer. Ours
includes the checkpoint behind every turn. With `--loops` only one of them runs, and the peak memory is its own.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from bench.quality import windows
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.settings import Settings
from workers.compression.training.training import distil


def main() -> None:
    options = arguments()
    compute = None if options.compute == "float32" else getattr(torch, options.compute)
    settings = Settings(
        tokens=options.turns * options.steps * options.sequences * options.length,
        sequences=options.sequences,
        micro_batch=options.micro_batch,
        interval=options.steps,
        checkpointing=options.checkpointing,
    )
    text = windows(AutoTokenizer.from_pretrained(options.model), options.text, options.length)
    original = StreamedModel.open(options.model, dtype=compute or torch.float32)
    teacher = original.whole()
    loops: dict[str, Iterator[object]] = {}
    if "bare" in options.loops:
        loops["bare"] = bare(teacher, smaller(options.model, options.removed), text, settings, compute)
    if "ours" in options.loops:
        student = smaller(options.model, options.removed)
        loops["ours"] = distil(teacher, student, text, settings, compute_dtype=compute)
    report(loops, settings.tokens // options.turns, options.turns)
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def report(loops: dict[str, Iterator[object]], tokens: int, turns: int) -> None:
    """Takes a turn of each loop after the other; the first one of all warms up and does not count."""
    print(f"| turn | {' | '.join(f'{name}, tokens/s' for name in loops)} | ours / bare |")
    print("|---" * (len(loops) + 2) + "|")
    spent = dict.fromkeys(loops, 0.0)
    for turn in range(turns):
        seconds = {name: timed(loop) for name, loop in loops.items()}
        print(row("warm-up" if turn == 0 else str(turn), tokens, seconds), flush=True)
        if turn:
            spent = {name: spent[name] + seconds[name] for name in loops}
    print(row("all", tokens * (turns - 1), spent))


def row(name: str, tokens: int, seconds: dict[str, float]) -> str:
    speeds = " | ".join(f"{tokens / each:.0f}" for each in seconds.values())
    ratio = f"{seconds['bare'] / seconds['ours']:.3f}" if len(seconds) == 2 else "–"
    return f"| {name} | {speeds} | {ratio} |"


def timed(loop: Iterator[object]) -> float:
    started = time.perf_counter()
    next(loop)
    return time.perf_counter() - started


def smaller(directory: Path, removed: int) -> PreTrainedModel:
    """The model in float32 without so many blocks of its middle."""
    model = StreamedModel.open(directory)
    first = (model.inventory.blocks - removed) // 2
    part = CompressedPart(0, "removal", {}, {}, {}, tuple(range(first, first + removed)))
    return EditedModel(model, [part]).whole()


def bare(
    teacher: PreTrainedModel, student: PreTrainedModel, text: Tensor, settings: Settings, compute: torch.dtype | None
) -> Iterator[None]:
    """The loop as one writes it by hand, a turn of `settings.interval` steps for each `next`."""
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.rate, betas=settings.betas, fused=True)
    for step in range(settings.steps(text.shape[1])):
        optimizer.zero_grad()
        chosen = torch.arange(step * settings.sequences, (step + 1) * settings.sequences) % len(text)
        for ids in text[chosen].split(settings.micro_batch):
            with torch.no_grad():
                wanted = teacher(ids, use_cache=False).logits.float().log_softmax(-1)
            with torch.autocast("cpu", compute, enabled=compute is not None):
                logits = student(ids, use_cache=False).logits
            found = logits.float().log_softmax(-1)
            lost = functional.kl_div(found, wanted, reduction="sum", log_target=True)
            (lost / (settings.sequences * text.shape[1])).backward()
        nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
        optimizer.step()
        if (step + 1) % settings.interval == 0:
            yield


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--removed", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4, help="steps in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--loops", nargs="+", choices=("bare", "ours"), default=["bare", "ours"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
