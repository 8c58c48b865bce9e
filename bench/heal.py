"""What heals a compressed model: the text, the learning rate, the loss, and what is trained.

    python -m bench.heal run MODEL_DIRECTORY PACKAGE --name "rate 1e-4" --train wiki.txt speeches.txt
        --teacher written.safetensors --judge held-out.txt other.txt --rows heal.jsonl --learning-rate 1e-4
    python -m bench.heal draw heal.jsonl

PACKAGE is what a job without distillation has left of the model. `run` trains it on equal parts of the texts, judges it
before, on the way and at the end by the other texts and by Python's documentation, and appends a row. `--teacher` adds
text that the model writes itself, once, into that file. `draw` prints the rows as a Markdown table, and draws
docs/distillation.svg. Needs matplotlib.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from bench.quality import perplexity, spread, windows
from bench.teacher_text import documentation
from workers.compression.models.streamed import StreamedModel
from workers.compression.teacher_text import sample
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings

PICTURE = Path("docs/distillation.svg")
LENGTH, JUDGED_LENGTH = 512, 1024
POINTS = 4
"""How often a training is judged."""


@dataclass(frozen=True)
class Row:
    """One training: after so many tokens, for each text, the perplexity as a ratio to the original's."""

    name: str
    tokens: tuple[int, ...]
    ratios: Mapping[str, tuple[float, ...]]


def main() -> None:
    options = arguments()
    if options.command == "draw":
        rows = [Row(**json.loads(line)) for line in options.rows.read_text().splitlines()]
        print(table(rows))
        draw(rows, PICTURE)
        return
    row = healed(options)
    with options.rows.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")
    print(table([row]))


def healed(options: argparse.Namespace) -> Row:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = {path.stem: windows(tokenizer, path, JUDGED_LENGTH) for path in options.judge}
    texts["python-docs"] = documentation(tokenizer, JUDGED_LENGTH)
    judged = {name: spread(text, options.windows) for name, text in texts.items()}
    teacher = StreamedModel.open(options.model, dtype=torch.bfloat16).whole().eval()
    student = StreamedModel.open(options.package, dtype=torch.float32).whole()
    before = perplexities(teacher, judged)
    tokens, found = [0], [perplexities(student, judged)]
    settings = DistillationSettings(
        tokens=options.tokens,
        batch_size=2,
        micro_batch_size=2,
        learning_rate=options.learning_rate,
        trainable=options.trainable,
        temperature=options.temperature,
        cross_entropy_weight=options.cross_entropy_weight,
        hidden_weight=options.hidden_weight,
        interval=options.tokens,
    )
    steps = settings.steps(LENGTH)

    class Judge(Observer):
        def on_step(self, step: int, loss: float, restarts: int) -> None:
            if step * POINTS // steps > (step - 1) * POINTS // steps:
                tokens.append(step * settings.batch_size * LENGTH)
                found.append(perplexities(student, judged))
                print(f"{tokens[-1]:,} tokens, loss {loss:.3f}, {found[-1]}", flush=True)

    text = mixture(options, tokenizer, teacher)
    distil(teacher, student, text, settings, compute_dtype=torch.bfloat16, observer=Judge())
    ratios = {name: tuple(each[name] / before[name] for each in found) for name in judged}
    return Row(options.name, tuple(tokens), ratios)


def mixture(options: argparse.Namespace, tokenizer: object, teacher: PreTrainedModel) -> Tensor:
    """As many windows [N, LENGTH] of each text as the tokens ask for, spread over it."""
    texts = [windows(tokenizer, path, LENGTH) for path in options.train]
    if options.teacher is not None:
        texts.append(written(options.teacher, teacher, tokenizer, options.tokens // LENGTH))
    each = -(-options.tokens // (LENGTH * len(texts)))
    return torch.cat([spread(text, each) for text in texts])


def written(path: Path, teacher: PreTrainedModel, tokenizer: object, count: int) -> Tensor:
    if not path.exists():
        save_file({"ids": torch.cat([*sample(teacher, tokenizer, count, LENGTH, seed=0)])}, path)  # type: ignore[arg-type]
    return load_file(path)["ids"]


def perplexities(model: PreTrainedModel, judged: Mapping[str, Tensor]) -> dict[str, float]:
    with torch.autocast("cpu", torch.bfloat16):
        return {name: perplexity(model, text) for name, text in judged.items()}


def table(rows: Sequence[Row]) -> str:
    """In Markdown, each text's ratio before and after."""
    names = list(rows[0].ratios)
    lines = [["", "tokens", *names], ["---"] * (len(names) + 2)]
    for row in rows:
        changes = (f"{row.ratios[name][0]:.2f} → {row.ratios[name][-1]:.2f}" for name in names)
        lines.append([row.name, f"{row.tokens[-1]:,}", *changes])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: Sequence[Row], picture: Path) -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "modelpress", "font.size": 11})
    names = list(rows[0].ratios)
    figure, panels = pyplot.subplots(1, len(names), figsize=(3 * len(names), 4.2), layout="constrained", sharey=True)
    for axes, name in zip(panels, names, strict=True):
        for row in rows:
            axes.plot([each / 1024 for each in row.tokens], row.ratios[name], marker=".", label=row.name)
        axes.set(title=name, xlabel="tokens (1024)", yscale="log")
        axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:.1f}"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.StrMethodFormatter("{x:.1f}"))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("perplexity / the original's (log scale)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(picture, metadata={"Date": None})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("draw").add_argument("rows", type=Path)
    run = commands.add_parser("run")
    run.add_argument("model", type=Path)
    run.add_argument("package", type=Path)
    run.add_argument("--name", required=True)
    run.add_argument("--train", type=Path, nargs="*", default=[])
    run.add_argument("--teacher", type=Path)
    run.add_argument("--judge", type=Path, nargs="+", required=True)
    run.add_argument("--rows", type=Path, required=True)
    run.add_argument("--tokens", type=int, default=65_536)
    run.add_argument("--windows", type=int, default=8, help="of each text to judge by")
    run.add_argument("--learning-rate", type=float, default=7e-5)
    run.add_argument("--temperature", type=float, default=1.0)
    run.add_argument("--cross-entropy-weight", type=float, default=0.5)
    run.add_argument("--hidden-weight", type=float, default=0.0)
    run.add_argument("--trainable", choices=("all", "factors", "norms"), default="all", help="is trained")
    options = parser.parse_args()
    if options.command == "run" and not options.train and options.teacher is None:
        parser.error("say what to train on: --train, --teacher or both")
    return options


if __name__ == "__main__":
    main()
