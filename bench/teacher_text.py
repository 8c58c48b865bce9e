"""What text to calibrate on when nobody brings any: WikiText, the model's own, or half of each.

    python -m bench.teacher_text MODEL_DIRECTORY --calibration wikitext2-valid.txt --out state-of-the-union.txt

calibrates `kronecker` on each of the three, as many sequences each time, and prints perplexities as ratios to the dense
model's: on the rest of the calibration file ("in"), on the other file ("out") and on Python's documentation ("docs").
No training.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import AutoTokenizer

from app.sources.python_docs import evaluation_documents
from bench.quality import Bench, fitted, perplexity, spread, windows
from workers.compression.math.sensitivity import measure
from workers.compression.models.streamed import StreamedModel
from workers.compression.teacher_text import Sampling, sample

METHOD = "kronecker"


def main() -> None:
    options = arguments()
    dtype = getattr(torch, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = windows(tokenizer, options.calibration, options.length)
    judged = {
        "in": spread(text[options.sequences :], options.windows),
        "out": spread(windows(tokenizer, options.out, options.length), options.windows),
        "docs": spread(documentation(tokenizer, options.length), options.windows),
    }
    dense = StreamedModel.open(options.model, dtype=dtype).whole().eval()
    own = written(dense, tokenizer, options)
    before = {name: perplexity(dense, ids) for name, ids in judged.items()}
    print("dense: " + ", ".join(f"{name} {value:.2f}" for name, value in before.items()))
    half = options.sequences // 2
    texts = {
        "WikiText-2": text[: options.sequences],
        "teacher:": own,
        "half of each": torch.cat([text[:half], own[: options.sequences - half]]),
    }
    print("| calibrated on | ratio | in | out | docs |\n|---|---|---|---|---|", flush=True)
    for name, calibration in texts.items():
        reached, after = compressed(options, dtype, calibration, judged)
        ratios = " | ".join(f"{after[each] / before[each]:.3g}" for each in judged)
        print(f"| {name} | {reached:.3f} | {ratios} |", flush=True)


def written(model: object, tokenizer: object, options: argparse.Namespace) -> Tensor:
    """[sequences, length] of the model's own text; prints what it cost."""
    sampling = Sampling(coolest=options.coolest, hottest=options.hottest, min_p=options.min_p)
    started = time.monotonic()
    drawn = sample(model, tokenizer, options.sequences, options.length, sampling, seed=0)  # type: ignore[arg-type]
    own = torch.cat(list(drawn))
    seconds = time.monotonic() - started
    print(f"wrote {own.numel():,} tokens in {seconds:.0f} s, {own.numel() / seconds:.0f} tokens/s; {sampling}")
    for ids in own[:: max(1, len(own) // options.show)] if options.show else []:
        print("    " + repr(tokenizer.decode(ids[:100])))  # type: ignore[attr-defined]
    return own


def compressed(
    options: argparse.Namespace, dtype: torch.dtype, calibration: Tensor, judged: Mapping[str, Tensor]
) -> tuple[float, dict[str, float]]:
    """The ratio reached, and the perplexity on each text."""
    model = StreamedModel.open(options.model, dtype=dtype)
    measured = {name: found for part in measure(model, calibration) for name, found in part.items()}
    result, reached = fitted(Bench(options.model, dtype, calibration, measured), METHOD, options.ratio)
    return reached, {name: perplexity(result, ids) for name, ids in judged.items()}


def documentation(tokenizer: object, length: int) -> Tensor:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "documentation.txt"
        path.write_text("\n\n".join(evaluation_documents()), encoding="utf-8")
        return windows(tokenizer, path, length)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=1.31)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--coolest", type=float, default=Sampling.coolest)
    parser.add_argument("--hottest", type=float, default=Sampling.hottest)
    parser.add_argument("--min-p", type=float, default=Sampling.min_p)
    parser.add_argument("--show", type=int, default=4, help="beginnings of so many sequences are printed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
