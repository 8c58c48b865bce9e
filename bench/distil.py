"""Tokens per second of distillation, beside a loop that does nothing but what must be done.

    python -m bench.distil MODEL_DIRECTORY --text A.txt

trains two copies of the model without some of its middle blocks on windows of A, a few steps of one and a few of the
other in turn, and prints one Markdown row for each turn and a last one for all. The bare loop is the teacher's forward,
the student's forward and backward, clipping and AdamW's step, with the same batch, dtype and optimizer. Ours includes
the checkpoint after every turn. With `--loops` only one of them runs, and the peak memory is its own.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from bench.quality import windows
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings


def main() -> None:
    options = arguments()
    compute = None if options.compute == "float32" else getattr(torch, options.compute)
    settings = DistillationSettings(
        tokens=options.turns * options.steps * options.batch_size * options.length,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        interval=options.steps,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    text = windows(AutoTokenizer.from_pretrained(options.model), options.text, options.length)
    original = StreamedModel.open(options.model, dtype=compute or torch.float32)
    teacher = original.whole()
    turns = Turns(options.loops, settings.tokens // options.turns)
    if "bare" in options.loops:
        turns.bare = bare(teacher, smaller(options.model, options.removed), text, settings, compute)
    if "ours" in options.loops:
        student = smaller(options.model, options.removed)
        distil(teacher, student, text, settings, compute_dtype=compute, observer=turns)
    else:
        for _ in range(options.turns):
            turns.finish({})
    turns.print_total()
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


class Turns(Observer):
    """Times our loop from checkpoint to checkpoint, and at each lets the bare loop take its turn.

    The first turn warms up and does not count.
    """

    bare: Iterator[None] | None = None

    def __init__(self, loops: list[str], tokens: int) -> None:
        self.loops = loops
        self.tokens = tokens
        self.turns: list[dict[str, float]] = []
        self.started: float | None = None
        print(f"| turn | {' | '.join(f'{name}, tokens/s' for name in loops)} | ours / bare |")
        print("|---" * (len(loops) + 2) + "|")

    def latest(self) -> TrainingCheckpoint | None:
        self.started = time.perf_counter()
        return None

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        assert self.started is not None
        self.finish({"ours": time.perf_counter() - self.started})
        self.started = time.perf_counter()
        return checkpoint

    def finish(self, seconds: dict[str, float]) -> None:
        """Note a turn of ours, take one of the bare loop, and print both."""
        if self.bare is not None:
            bare = self.bare
            seconds = seconds | {"bare": timed(lambda: next(bare))}
        number = len(self.turns)
        self.turns.append(seconds)
        print(row("warm-up" if number == 0 else str(number), self.tokens, self.loops, seconds), flush=True)

    def print_total(self) -> None:
        counted = self.turns[1:]
        spent = {name: sum(turn[name] for turn in counted) for name in self.loops}
        print(row("all", self.tokens * len(counted), self.loops, spent))


def row(name: str, tokens: int, loops: list[str], seconds: dict[str, float]) -> str:
    speeds = " | ".join(f"{tokens / seconds[loop]:.0f}" for loop in loops)
    ratio = f"{seconds['bare'] / seconds['ours']:.3f}" if len(seconds) == 2 else "–"
    return f"| {name} | {speeds} | {ratio} |"


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def smaller(directory: Path, removed: int) -> PreTrainedModel:
    """Return the model in float32 without `removed` blocks of its middle."""
    model = StreamedModel.open(directory)
    first = (model.inventory.blocks - removed) // 2
    part = CompressedPart(0, "removal", {}, {}, {}, tuple(range(first, first + removed)))
    return EditedModel(model, [part]).whole()


def bare(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    text: Tensor,
    settings: DistillationSettings,
    compute: torch.dtype | None,
) -> Iterator[None]:
    """Train as in a loop written by hand; each `next` takes a turn of `settings.interval` steps."""
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True)
    for step in range(settings.steps(text.shape[1])):
        optimizer.zero_grad()
        chosen = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size) % len(text)
        for ids in text[chosen].split(settings.micro_batch_size):
            with torch.no_grad():
                wanted = teacher(ids, use_cache=False).logits.float().log_softmax(-1)
            with torch.autocast("cpu", compute, enabled=compute is not None):
                logits = student(ids, use_cache=False).logits
            found = logits.float().log_softmax(-1)
            lost = functional.kl_div(found, wanted, reduction="sum", log_target=True)
            (lost / (settings.batch_size * text.shape[1])).backward()
        nn.utils.clip_grad_norm_(student.parameters(), settings.max_gradient_norm)
        optimizer.step()
        if (step + 1) % settings.interval == 0:
            yield


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--removed", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4, help="steps in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--loops", nargs="+", choices=("bare", "ours"), default=["bare", "ours"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
