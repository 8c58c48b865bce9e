"""Which structure approximates a matrix of a real model best, for the same number of stored numbers.

Every structure is fitted to every matrix of some blocks, weighed as `low_rank` weighs it: inputs by the second moments
of what flows in, outputs by the loss's squared gradients, both of the original model.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoTokenizer

from bench.experiment import Case, Experiment, Place, Row, Table
from bench.models import BUNDLED, model_directory
from bench.texts import Piece, all_windows
from modelpress.spec.structures import Kronecker, LowRank, Pivoted, Structure
from workers.compression.drawing import evenly_spread
from workers.compression.math.fitting import LeastSquares, Moments, fit, matrix, matrix_of, problem
from workers.compression.math.sensitivity import measure
from workers.compression.models.streamed import StreamedModel

LENGTH = 1024


class Candidate(Case):
    """A structure and the share of a matrix's numbers that it may store."""

    structure: Literal["low_rank", "pivoted", "kronecker"]
    share: float = Field(gt=0, lt=1)
    tile: int | None = Field(None, description="rows and columns of the smaller Kronecker factor")
    permuted: bool = Field(False, description="rows and columns in a searched order")

    def form(self, rows: int, columns: int) -> Structure:
        """Return the greatest structure of this kind for a matrix [rows, columns] that keeps to the share."""
        budget = self.share * rows * columns
        match self.structure:
            case "low_rank":
                return LowRank(int(budget / (rows + columns)))
            case "pivoted":
                fitting = (
                    rank for rank in range(1, min(rows, columns)) if Pivoted(rank).parameters(rows, columns) <= budget
                )
                return Pivoted(max(fitting))
            case "kronecker":
                assert self.tile, f"{self.name} has no tile"
                shapes = (rows // self.tile, self.tile), (columns // self.tile, self.tile)
                return Kronecker(max(1, int(self.share * self.tile**2)), *shapes, self.permuted, self.permuted)


class Errors(Row):
    """Relative weighted output error of one structure, root of the mean square over the blocks, by kind of matrix."""

    errors: dict[str, float]
    stored: float = Field(description="stored numbers / the matrices' numbers, mean")
    seconds: float = Field(description="of one fit, mean")


class Structures(Experiment[Candidate, Errors]):
    """Structures on the matrices of a real model."""

    row: ClassVar[type[Row]] = Errors

    kind: Literal["structures"]
    model: str = BUNDLED
    text: Piece
    sequences: int = 8
    blocks: tuple[int, ...]
    matrices: dict[str, str] = Field(description="modules of a block by the name that the table has for them")

    def measure(self, cases: Sequence[Candidate], place: Place) -> Iterator[Errors]:
        """Measure moments and gradients once, then fit every case to every matrix."""
        directory = model_directory(self.model, place.scratch)
        model = StreamedModel.open(directory, dtype=torch.bfloat16)
        every = all_windows(AutoTokenizer.from_pretrained(directory), self.text.read(place.data), LENGTH)
        ids = evenly_spread(every[: int(self.text.stop * len(every))], self.sequences)
        outputs = {name: found.outputs for part in measure(model, ids) for name, found in part.items()}
        with torch.no_grad():
            blocks = list(self._problems(model, ids, outputs))
        for case in cases:
            yield _fitted(case, blocks)

    def _problems(
        self, model: StreamedModel, ids: Tensor, outputs: Mapping[str, Tensor]
    ) -> Iterator[dict[str, LeastSquares]]:
        """Yield for each block what is to be fitted, by kind of matrix."""
        hidden = model.hidden(ids)
        for index in range(max(self.blocks) + 1):
            with model.block(index) as block:
                modules = {kind: block.get_submodule(path) for kind, path in self.matrices.items()}
                moments = {kind: Moments.empty(matrix_of(module).shape[1]) for kind, module in modules.items()}
                if index in self.blocks:
                    for kind, module in modules.items():
                        module.register_forward_pre_hook(partial(_watch, moments[kind]))
                hidden = torch.cat([model.run(block, index, batch) for batch in torch.split(hidden, 1)])
                if index in self.blocks:
                    prefix = f"{model.inventory.block_prefix}.{index}."
                    yield {
                        kind: problem(matrix_of(module), moments[kind], outputs=outputs[prefix + self.matrices[kind]])
                        for kind, module in modules.items()
                    }

    def table(self, rows: Sequence[Errors]) -> Table:
        """Return a row for each case, with a column for each kind of matrix."""
        header = ("structure", *self.matrices, "stored", "seconds")
        return Table(
            header,
            tuple(
                (
                    row.case,
                    *(f"{row.errors[kind]:.4f}" for kind in self.matrices),
                    f"{row.stored:.1%}",
                    f"{row.seconds:.2f}",
                )
                for row in rows
            ),
        )


def _watch(moments: Moments, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    moments.add(arguments[0])


def _fitted(case: Candidate, blocks: Sequence[Mapping[str, LeastSquares]]) -> Errors:
    squares: dict[str, list[float]] = {kind: [] for kind in blocks[0]}
    stored, seconds = [], []
    for kind, site in ((kind, site) for block in blocks for kind, site in block.items()):
        rows, columns = site.target.shape
        form = case.form(rows, columns)
        started = time.monotonic()
        factors = fit(form, site)
        seconds.append(time.monotonic() - started)
        squares[kind].append(site.error(matrix(form, factors, site.target)))
        stored.append(form.parameters(rows, columns) / (rows * columns))
    return Errors(
        case=case.name,
        errors={kind: math.sqrt(sum(found) / len(found)) for kind, found in squares.items()},
        stored=sum(stored) / len(stored),
        seconds=sum(seconds) / len(seconds),
    )
