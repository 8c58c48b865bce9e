"""What the search for permutations finds in single matrices of random numbers, and how long it takes.

A planted matrix is a sum of Kronecker products whose rows and columns were put in a random order, under noise: a
perfect search keeps all of its energy.
"""

import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.experiment import Case, Experiment, Place, Row, Table
from modelpress.spec.structures import Kronecker
from workers.compression.math.permutation import grouped, kept_energy, search


class Search(Case):
    """A matrix of rows × columns and the sum of Kronecker products that it is searched for."""

    rows: int = 768
    columns: int = 3072
    tile: tuple[int, int] = (2, 4)
    terms: int = 4
    planted: bool = Field(False, description="a sum of `terms` products; else independent random numbers")
    noise: float = Field(0.1, description="of the planted matrix, as a share of its root mean square")
    permute: Literal["none", "columns", "both"] = "both"


class Found(Row):
    """Energy of the matrix that the sum keeps in the orders found, of the planted part alone where there is one."""

    energy: float
    seconds: float


class Searches(Experiment[Search, Found]):
    """Search for permutations in random matrices."""

    row: ClassVar[type[Row]] = Found

    kind: Literal["searches"]

    def measure(self, cases: Sequence[Search], place: Place) -> Iterator[Found]:
        """Search each matrix once, with random numbers of its own."""
        for case in cases:
            yield _searched(case, torch.Generator().manual_seed(self.seed))

    def table(self, rows: Sequence[Found]) -> Table:
        """Return a row for each case."""
        return Table(
            ("matrix", "energy kept", "seconds"),
            tuple((row.case, f"{row.energy:.4f}", f"{row.seconds:.1f}") for row in rows),
        )


def _searched(case: Search, generator: torch.Generator) -> Found:
    clean = planted(case, generator) if case.planted else torch.randn(case.rows, case.columns, generator=generator)
    noise = case.noise if case.planted else 0.0
    noisy = clean + noise * torch.randn(clean.shape, generator=generator)
    (tile_rows, tile_columns), permute = case.tile, case.permute
    form = Kronecker(
        case.terms,
        (case.rows // tile_rows, tile_rows),
        (case.columns // tile_columns, tile_columns),
        permute_in=permute != "none",
        permute_out=permute == "both",
    )
    started = time.monotonic()
    found = search(noisy, form, (grouped,))
    seconds = time.monotonic() - started
    ordered = clean[found.rows][:, found.columns]
    kept = kept_energy(ordered, tile_rows, tile_columns, case.terms) / clean.square().sum().item()
    return Found(case=case.name, energy=kept, seconds=seconds)


def planted(case: Search, generator: torch.Generator) -> Tensor:
    """Return the case's sum of Kronecker products with a mean square of 1, its rows and columns in a random order."""
    tile_rows, tile_columns = case.tile
    outer = case.rows // tile_rows, case.columns // tile_columns
    products = (
        torch.kron(torch.randn(outer, generator=generator), torch.randn(case.tile, generator=generator))
        for _ in range(case.terms)
    )
    matrix = torch.stack(list(products)).sum(0)
    matrix /= matrix.square().mean().sqrt()
    order = torch.randperm(case.rows, generator=generator)
    return matrix[order][:, torch.randperm(case.columns, generator=generator)]
