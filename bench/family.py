"""Which structure a matrix wants: the whole family on matrices of a real model, at equal stored numbers.

    python -m bench.family MODEL_DIRECTORY --calibration A.txt --blocks 2 15 28 --keep PROBLEMS

measures moments and gradients on windows of A, once for all runs that keep them in the same file, fits every structure
to every matrix of those blocks, and prints the relative output error, weighted as the `kronecker` method weighs it, by
kind of matrix (root of the mean square over the blocks), with seconds per fit. Kronecker sums also appear in the free
orders, those that are folded into the weights on both sides: of the MLP's hidden units, and of the channels between
values and output within each head.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from workers.compression.spec.plans import Kronecker, LowRank, Pivoted, Structure, Sum, parameters

from bench.quality import windows
from workers.compression.math.fitting import Moments, Problem, fit, matrix, matrix_of, problem
from workers.compression.math.permutation import search
from workers.compression.math.sensitivity import measure
from workers.compression.models.streamed import StreamedModel

QUERY, KEY, VALUE, OUTPUT = (f"self_attn.{kind}_proj" for kind in "qkvo")
GATE, UP, DOWN = (f"mlp.{kind}_proj" for kind in ("gate", "up", "down"))
KINDS = (QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN)

FREE = ", free orders only"

Chooser = Callable[[int, int, float], Structure | None]


@dataclass(frozen=True)
class Result:
    error: float
    stored: float
    seconds: float


def main() -> None:
    options = arguments()
    blocks = kept(options)
    free = [free_orders(sites, options.head) for sites in blocks]
    for share in options.shares:
        print(f"\n| {share:.0%} of the numbers | {' | '.join(kind.split('.')[1] for kind in KINDS)} | stored | s |")
        print(f"|---|{'---|' * (len(KINDS) + 2)}")
        for label in options.structures:
            problems = free if label.endswith(FREE) else blocks
            print_row(label, [[one_fit(FAMILY[label], sites[kind], share) for sites in problems] for kind in KINDS])


def kept(options: argparse.Namespace) -> list[dict[str, Problem]]:
    """The problems of each block by kind, from the file where it exists."""
    if not options.keep.exists():
        model = StreamedModel.open(options.model, dtype=torch.bfloat16)
        ids = windows(AutoTokenizer.from_pretrained(options.model), options.calibration, 1024)[: options.sequences]
        outputs = {name: found.outputs for part in measure(model, ids) for name, found in part.items()}
        with torch.no_grad():
            torch.save([dict(problems) for problems in measured(model, ids, outputs, options.blocks)], options.keep)
    with torch.serialization.safe_globals([Problem]):
        found: list[dict[str, Problem]] = torch.load(options.keep)
    return found


def measured(
    model: StreamedModel, ids: Tensor, outputs: Mapping[str, Tensor], blocks: list[int]
) -> Iterator[dict[str, Problem]]:
    """For each of the blocks the problems by kind, with the moments of the original stream."""
    hidden = model.hidden(ids)
    for index in range(max(blocks) + 1):
        with model.block(index) as block:
            moments = {kind: Moments.empty(matrix_of(block.get_submodule(kind)).shape[1]) for kind in KINDS}
            for kind in KINDS if index in blocks else ():
                block.get_submodule(kind).register_forward_pre_hook(partial(watch, moments[kind]))
            hidden = torch.cat([model.run(block, index, batch) for batch in torch.split(hidden, 1)])
            if index in blocks:
                yield {
                    kind: problem(matrix_of(block.get_submodule(kind)), moments[kind], outputs=outputs[name])
                    for kind in KINDS
                    for name in [f"{model.inventory.block_prefix}.{index}.{kind}"]
                }


def watch(moments: Moments, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    moments.add(arguments[0])


def one_fit(choose: Chooser, site: Problem, share: float) -> Result | None:
    rows, columns = site.target.shape
    structure = choose(rows, columns, share)
    if structure is None:
        return None
    started = time.monotonic()
    factors = fit(structure, site)
    seconds = time.monotonic() - started
    error = math.sqrt(site.error(matrix(structure, factors, site.target)))
    return Result(error, parameters(structure, rows, columns) / (rows * columns), seconds)


def low_rank(rows: int, columns: int, share: float) -> Structure:
    return LowRank(int(share * rows * columns / (rows + columns)))


def pivoted(rows: int, columns: int, share: float) -> Structure:
    budget = share * rows * columns
    fitting = (rank for rank in range(1, min(rows, columns)) if parameters(Pivoted(rank), rows, columns) <= budget)
    return Pivoted(max(fitting))


def tiled(tile: int, rows: int, columns: int, share: float, *, permuted: bool = False) -> Structure | None:
    """A Kronecker sum whose left factors take the share; the few numbers of its tiles and orders come on top.

    None where the share is less than one term.
    """
    terms = int(share * tile**2)
    shapes = (rows // tile, tile), (columns // tile, tile)
    return Kronecker(terms, *shapes, permuted, permuted) if terms else None


def with_residual(product_share: float, rows: int, columns: int, share: float) -> Structure | None:
    """A Kronecker sum that takes this part of the share, and pivoted low rank for the rest of it."""
    product = tiled(4, rows, columns, share * product_share)
    if product is None:
        return None
    rest = share - parameters(product, rows, columns) / (rows * columns)
    return Sum((product, pivoted(rows, columns, rest)))


FAMILY: Mapping[str, Chooser] = {
    "low rank": low_rank,
    "pivoted": pivoted,
    "Kronecker 2 × 2": partial(tiled, 2),
    "Kronecker 4 × 4": partial(tiled, 4),
    "Kronecker 8 × 8": partial(tiled, 8),
    f"Kronecker 4 × 4{FREE}": partial(tiled, 4),
    "Kronecker 2 × 2, permuted": partial(tiled, 2, permuted=True),
    "Kronecker 4 × 4, permuted": partial(tiled, 4, permuted=True),
    "Kronecker 8 × 8, permuted": partial(tiled, 8, permuted=True),
    "Kronecker 4 × 4 + pivoted": partial(with_residual, 1 / 2),
    "a little Kronecker 4 × 4 + pivoted": partial(with_residual, 1 / 5),
}


def free_orders(sites: Mapping[str, Problem], channels: int) -> dict[str, Problem]:
    """The problems by kind, in the orders of hidden units and value channels that a search finds over all concerned.

    Such an order is folded into the weights on both of its sides and stores nothing.
    """
    hidden = best_rows(torch.cat((sites[GATE].target, sites[UP].target, sites[DOWN].target.T), dim=1))
    values, projected = sites[VALUE].target, sites[OUTPUT].target
    heads = len(values) // channels
    shared = projected.view(len(projected), heads, -1, channels)
    within = [
        head * channels + best_rows(torch.cat((values[head * channels :][:channels], others), dim=1))
        for head, others in enumerate(shared.permute(1, 3, 0, 2).flatten(2))
    ]
    queries = torch.cat([order - head * channels for head, order in enumerate(within) for _ in range(shared.shape[2])])
    starts = torch.arange(0, projected.shape[1], channels).repeat_interleave(channels)
    return dict(sites) | {
        VALUE: with_rows(sites[VALUE], torch.cat(within)),
        OUTPUT: with_columns(sites[OUTPUT], queries + starts),
        GATE: with_rows(sites[GATE], hidden),
        UP: with_rows(sites[UP], hidden),
        DOWN: with_columns(sites[DOWN], hidden),
    }


def best_rows(target: Tensor) -> Tensor:
    rows, columns = target.shape
    return search(target, Kronecker(8, (rows // 4, 4), (columns // 4, 4), permute_out=True)).rows


def with_rows(site: Problem, order: Tensor) -> Problem:
    return Problem(site.target[order], site.inputs, None if site.outputs is None else site.outputs[order])


def with_columns(site: Problem, order: Tensor) -> Problem:
    moments = site.inputs @ site.inputs.T
    root: Tensor = torch.linalg.cholesky(moments[order][:, order])
    return Problem(site.target[:, order], root, site.outputs)


def print_row(label: str, results: list[list[Result | None]]) -> None:
    found = [[result for result in each if result] for each in results]
    every = [result for each in found for result in each]
    if every:
        errors = [f"{math.sqrt(mean([result.error**2 for result in each])):.4f}" if each else "–" for each in found]
        stored, seconds = mean([result.stored for result in every]), mean([result.seconds for result in every])
        print(f"| {label} | {' | '.join(errors)} | {stored:.1%} | {seconds:.2f} |", flush=True)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 15, 28])
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--structures", choices=FAMILY, nargs="+", default=list(FAMILY))
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--head", type=int, default=64, help="channels of an attention head")
    return parser.parse_args()


if __name__ == "__main__":
    main()
