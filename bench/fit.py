"""How long the searches and fits of single matrices take, and what they keep.

    python -m bench.fit

prints: a planted permuted Kronecker matrix of 768 × 3072 under 10 % noise; what permutation adds on random weights of
GPT-2 small's shapes; the fits of every structure to one matrix at 70 % of its parameters; and the whole published
configuration on GPT-2 small's shapes with random weights.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from workers.compression.spec.plans import Halved, Kronecker, LowRank, Pivoted, Structure, parameters, to_dict

from workers.compression.math.fitting import Moments, fit, problem
from workers.compression.math.kronecker import data_free
from workers.compression.math.permutation import kept_energy, search
from workers.compression.math.tables import fit_halved
from workers.compression.structures import build

PAPERS = Kronecker(4, (384, 2), (768, 4), permute_in=True, permute_out=True)
PAPERS_OTHER_WAY = Kronecker(4, (768, 4), (384, 2), permute_in=True, permute_out=True)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    print("| matrix | search | energy kept | s |\n|---|---|---|---|")
    for terms in (1, 2, 4):
        planted(terms, generator)
    for sides in ("none", "columns", "rows and columns"):
        ablation(sides, torch.randn(768, 3072, generator=torch.Generator().manual_seed(0)))
    print("\n| structure, 576 by 1536 | parameters | relative output error | s |\n|---|---|---|---|")
    for structure in (LowRank(293), Pivoted(352), Kronecker(11, (144, 4), (384, 4))):
        one_fit(structure, torch.randn(576, 1536, generator=generator), generator)
    print("\n| tqcompressor on GPT-2 small's shapes | s |\n|---|---|")
    published(generator)


def planted(terms: int, generator: torch.Generator) -> None:
    matrix = torch.zeros(768, 3072)
    for _ in range(terms):
        matrix += torch.kron(torch.randn(384, 768, generator=generator), torch.randn(2, 4, generator=generator))
    matrix /= matrix.square().mean().sqrt()
    matrix = matrix[torch.randperm(768, generator=generator)][:, torch.randperm(3072, generator=generator)]
    noisy = matrix + 0.1 * torch.randn(matrix.shape, generator=generator)
    started = time.monotonic()
    found = search(noisy, replace(PAPERS, terms=terms))
    seconds = time.monotonic() - started
    kept = kept_energy(matrix[found.rows][:, found.columns], 2, 4, terms) / matrix.square().sum().item()
    print(f"| planted, {terms} of 8 terms | rows and columns | {kept:.4f} of the planted | {seconds:.1f} |", flush=True)


def ablation(sides: str, weight: Tensor) -> None:
    structure = replace(PAPERS, permute_in=sides != "none", permute_out=sides == "rows and columns")
    started = time.monotonic()
    found = search(weight, structure)
    print(f"| random, 4 of 8 terms | {sides} | {found.energy:.4f} | {time.monotonic() - started:.1f} |", flush=True)


def one_fit(structure: Structure, weight: Tensor, generator: torch.Generator) -> None:
    out_features, in_features = weight.shape
    moments = Moments.empty(in_features)
    scales = torch.arange(1, in_features + 1).rsqrt()
    moments.add(
        torch.randn(4096, in_features, generator=generator)
        * scales
        @ torch.linalg.qr(torch.randn(in_features, in_features)).Q
    )
    started = time.monotonic()
    site = problem(weight, moments)
    factors = fit(structure, site)
    seconds = time.monotonic() - started
    layer = build(to_dict(structure), in_features, out_features, bias=False, dtype=torch.float64)
    layer.load_state_dict(factors)
    kind, count = to_dict(structure)["kind"], parameters(structure, out_features, in_features)
    print(f"| {kind} | {count} | {site.error(layer.dense()) ** 0.5:.4f} | {seconds:.1f} |", flush=True)


def published(generator: torch.Generator) -> None:
    """Permutations and factors of every site: twelve matrices of the MLPs, and the embedding halved twice."""
    wide = [torch.randn(768, 3072, generator=generator) for _ in range(6)]
    tall = [torch.randn(3072, 768, generator=generator) for _ in range(6)]
    table = torch.randn(50257, 768, generator=generator)
    seconds = (
        timed(lambda: [data_free(PAPERS, weight.double()) for weight in wide]),
        timed(lambda: [data_free(PAPERS_OTHER_WAY, weight.double()) for weight in tall]),
        timed(lambda: fit_halved(Halved(2), table)),
    )
    names = ("six of 768 × 3072", "six of 3072 × 768", "the embedding, 50257 × 768, halved twice")
    for name, spent in zip((*names, "all"), (*seconds, sum(seconds)), strict=True):
        print(f"| {name} | {spent:.1f} |", flush=True)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
