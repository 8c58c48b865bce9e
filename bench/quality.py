"""Perplexity after compression, as a ratio to the dense model's, in and out of the calibration's domain.

    python -m bench.quality MODEL_DIRECTORY --calibration A.txt --out B.txt --ratios 1.15 1.3 1.31 1.5

calibrates on the first part of A, evaluates on the rest of A ("in") and on B ("out"), and prints one Markdown row for
each method and ratio. No training. Text that is tokenised by words, as WikiText is, is detokenised first.
"""

import argparse
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from workers.compression.math.allocation import measured_plan
from workers.compression.spec.catalog import method
from workers.compression.spec.plans import Kronecker, Structure, stored, to_dict

from workers.compression import structures
from workers.compression.math.kronecker import rearranged_fit
from workers.compression.math.sensitivity import Sensitivity, measure
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.steps.factor import compress

TILE = 4


@dataclass(frozen=True)
class Bench:
    """One model, the tokens it is calibrated on, and what an error does to its output."""

    directory: Path
    dtype: torch.dtype
    calibration: Tensor
    measured: Mapping[str, Sensitivity]

    def open(self) -> StreamedModel:
        return StreamedModel.open(self.directory, dtype=self.dtype)


def main() -> None:
    options = arguments()
    dtype = getattr(torch, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = windows(tokenizer, options.calibration, options.length)
    calibration, inside = text[: options.sequences], spread(text[options.sequences :], options.windows)
    outside = spread(windows(tokenizer, options.out, options.length), options.windows)
    dense = StreamedModel.open(options.model, dtype=dtype).whole().eval()
    before = perplexity(dense, inside), perplexity(dense, outside)
    print(f"dense: in {before[0]:.2f}, out {before[1]:.2f}")
    print("| method | ratio | in | out | measure s | fit s |\n|---|---|---|---|---|---|", flush=True)
    started = time.monotonic()
    model = StreamedModel.open(options.model, dtype=dtype)
    measured = {name: found for part in measure(model, calibration) for name, found in part.items()}
    measuring = time.monotonic() - started
    bench = Bench(options.model, dtype, calibration, measured)
    for ratio in options.ratios:
        for name in options.methods:
            started = time.monotonic()
            compressed, reached = METHODS[name](bench, name, ratio)
            fitting = time.monotonic() - started
            after = perplexity(compressed, inside) / before[0], perplexity(compressed, outside) / before[1]
            spent = f"{measuring:.0f}" if name == "kronecker" else "–"
            print(f"| {name} | {reached:.3f} | {after[0]:.3g} | {after[1]:.3g} | {spent} | {fitting:.0f} |", flush=True)


def fitted(bench: Bench, name: str, ratio: float) -> tuple[nn.Module, float]:
    """The model compressed by one of our methods, and the ratio reached."""
    model = bench.open()
    plan = measured_plan(model.inventory, name, ratio, bench.measured)
    weights = bench.measured if method(name).measured else None
    parts = list(compress(model, plan, bench.calibration, sensitivities=weights))
    return EditedModel(bench.open(), parts).whole().eval(), plan.ratio


def tqcompressor_style(bench: Bench, name: str, ratio: float) -> tuple[nn.Module, float]:
    """Data-free Kronecker sums on every site of every block, the paper's fit, with tiles that reach the budget."""
    model = bench.open()
    share = block_share(model.inventory, ratio)
    forms = {site.name: tiled(site, share) for site in model.inventory.sites}
    compressed = model.whole()
    matrices = {site: compressed.get_submodule(site).weight.detach().double() for site in forms}
    structures.replace(compressed, {site: to_dict(form) for site, form in forms.items()})
    for site, form in forms.items():
        left, right = rearranged_fit(form, matrices[site])
        compressed.get_submodule(site).load_state_dict({"left": left, "right": right}, strict=False)
    return compressed.eval(), model.inventory.total_parameters / stored(model.inventory, dict[str, Structure](forms))


METHODS = {"kronecker": fitted, "svd": fitted, "tqcompressor-style": tqcompressor_style}


def block_share(inventory: Inventory, ratio: float) -> float:
    blocks = sum(site.out_features * site.in_features for site in inventory.sites)
    return 1 - inventory.total_parameters * (1 - 1 / ratio) / blocks


def tiled(site: Site, share: float) -> Kronecker:
    out_shape, in_shape = (site.out_features // TILE, TILE), (site.in_features // TILE, TILE)
    return Kronecker(max(1, math.ceil(share * TILE**2 - 0.5)), out_shape, in_shape)


def windows(tokenizer: object, path: Path, length: int) -> Tensor:
    text = detokenised(path.read_text(encoding="utf-8"))
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])  # type: ignore[operator]
    return ids[: len(ids) // length * length].view(-1, length)


def detokenised(text: str) -> str:
    """Undoes WikiText's word tokenisation; other text has nothing of the kind and stays as it is."""
    text = re.sub(r" @([-,.])@ ", r"\1", text).replace("<unk>", "unk")
    return re.sub(r"([(\[]) ", r"\1", re.sub(r" ([.,;:!?)\]])", r"\1", text))


def spread(sequences: Tensor, count: int) -> Tensor:
    return sequences[torch.linspace(0, len(sequences) - 1, count).long()]


@torch.no_grad()
def perplexity(model: nn.Module, sequences: Tensor) -> float:
    return math.exp(sum(losses(model, sequences)) / len(sequences))


def losses(model: nn.Module, sequences: Tensor) -> Iterator[float]:
    for ids in sequences:
        logits = model(ids[None], use_cache=False).logits[0, :-1].float()
        yield nn.functional.cross_entropy(logits, ids[1:]).item()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.15, 1.3, 1.31, 1.5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
