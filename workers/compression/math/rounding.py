"""Round a matrix to a code of `spec.codes`, so that the outputs of its module change least.

    second, _ = damped(moments.inputs / moments.tokens)
    encoded = rounded(CODES["iq4_nl"], weight, second)

An error e [in] of a row costs e H eᵀ, with H the second moment of the inputs. The rows are independent: weights of the
outputs do not change the best levels. Columns are rounded one after another, and each makes up for the errors of those
before it (GPTQ, arXiv 2210.17323). With H = R Rᵀ and R upper triangular, the cost is

    Σ_k R_kk² (e_k + Σ_{j<k} e_j R_jk / R_kk)²

so the best level for column k is the one nearest to w_k + Σ_{j<k} e_j R_jk / R_kk, and R_kk² is the weight with which a
group's scale is searched. Columns with much energy go first, as far as groups stay together. Afterwards the units are
fitted to the chosen levels, and single levels change where that lowers the cost further (coordinate descent).

Promise: units are rounded to their bits before levels are chosen, so nothing is lost when they are stored. The result
is finite for weights and inputs of zeros.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modelpress.spec.codes import Code
from workers.compression.encoded import Encoded
from workers.compression.math.degenerate import relative
from workers.compression.math.scales import (
    Levels,
    inverse,
    search_group_unit,
    search_scale,
    search_unit,
    stored,
)

WIDTH = 32
"""Columns, at least, that correct each other one by one; later columns are corrected for all of them at once."""

SWEEPS = 1
"""Passes over the columns that change single levels after the feedback."""

ROWS, CARD_ROWS = 4096, 65_536
"""Rows that are rounded at a time on a CPU, and on a card, where an operation on few rows is over before the next one
is launched."""

FITTED = 2**24
"""Numbers in the equations of the units that are solved at a time."""

RIDGE = 1e-6
"""Ridge of the fit of units, as a fraction of its mean diagonal."""


def rounded(
    code: Code, weight: Tensor, second: Tensor, *, units: torch.dtype = torch.float16, sweeps: int = SWEEPS
) -> Encoded:
    """Return the matrix `weight` [out, in] in the code.

    Args:
        code: a code that fits rows of the matrix's length.
        weight: the matrix; finite.
        second: damped second moment of its inputs [in, in], positive definite.
        units: dtype in which units are stored.
        sweeps: passes of coordinate descent; 0 ends with the feedback.

    Raises:
        ValueError: if the code's blocks do not fit the rows.
    """
    columns = weight.shape[1]
    if not code.fits(columns):
        raise ValueError(f"rows of {columns} weights are not a whole number of {code.name}'s blocks of {code.block}")
    metric = _Metric.of(second.to(weight.device), _order(second.diagonal().to(weight.device), code))
    together = torch.split(weight.detach().float(), ROWS if weight.device.type == "cpu" else CARD_ROWS)
    parts = [_Rows(code, metric, rows, units).encoded(sweeps) for rows in together]
    return parts[0] if len(parts) == 1 else Encoded.stacked(parts)


def relative_error(weight: Tensor, approximation: Tensor, second: Tensor) -> float:
    """Return the norm of the error of the outputs, relative to that of the outputs: √(E‖(W − Ŵ)x‖² / E‖Wx‖²).

    Both matrices are [out, in]; `second` [in, in] is E[x xᵀ].
    """
    lost, total = (
        float(((each @ second) * each).sum(dtype=torch.float64))
        for each in (weight.float() - approximation, weight.float())
    )
    return math.sqrt(relative(lost, total))


def _order(energies: Tensor, code: Code) -> Tensor:
    """Return the columns [in] in descending order of `energies`: whole blocks, whole groups in them, then columns."""
    group = code.group or len(energies)
    groups = energies.view(-1, group)
    inside = groups.argsort(-1, descending=True)
    columns = torch.arange(len(energies), device=energies.device).view(-1, group).gather(-1, inside)
    blocks = groups.mean(-1).view(-1, code.groups)
    among = blocks.argsort(-1, descending=True).unsqueeze(-1).expand(-1, -1, group)
    columns = columns.view(-1, code.groups, group).gather(1, among)
    return columns[blocks.mean(-1).argsort(descending=True)].flatten()


@dataclass(frozen=True)
class _Metric:
    """The cost of errors, with columns in the order in which they are rounded.

    Attributes:
        order: the columns' places in the matrix [in].
        second: H [in, in].
        feedback: R_jk / R_kk [in, in].
        weights: R_kk² [in].
    """

    order: Tensor
    second: Tensor
    feedback: Tensor
    weights: Tensor

    @classmethod
    def of(cls, second: Tensor, order: Tensor) -> "_Metric":
        """Return the metric of the second moment [in, in] for columns in `order`."""
        ordered = second.double()[order][:, order]
        root = torch.linalg.cholesky(ordered.flip(0, 1)).flip(0, 1)
        diagonal = root.diagonal()
        return cls(order, ordered.float(), (root / diagonal).float(), diagonal.square().float())


class _Rows:
    """Some rows of a matrix on their way into a code.

    Columns are in the order of the metric until `encoded` returns.
    """

    def __init__(self, code: Code, metric: _Metric, weight: Tensor, dtype: torch.dtype) -> None:
        rows, columns = weight.shape
        self.code, self.metric, self.dtype = code, metric, dtype
        self.group, self.block = code.group or columns, code.block or columns
        self.table = Levels(code, weight.device)
        self.weight = weight[:, metric.order]
        self.errors = torch.zeros_like(self.weight)
        self.levels = torch.zeros_like(self.weight, dtype=torch.uint8)
        self.units = self.weight.new_zeros(rows, columns // self.block)
        self.scales = self.weight.new_ones(rows, columns // self.group)
        self._present: tuple[int, Tensor, Tensor] | None = None

    def encoded(self, sweeps: int) -> Encoded:
        """Choose all levels, and return them with the columns back in their places."""
        self._feed_back()
        for _ in range(sweeps):
            self._refit()
            self._descend()
        order = self.metric.order
        levels, units, scales = (torch.empty_like(each) for each in (self.levels, self.units, self.scales))
        levels[:, order] = self.levels
        units[:, order[:: self.block] // self.block] = self.units
        scales[:, order[:: self.group] // self.group] = self.scales
        return Encoded(
            self.code, levels, units.to(self.dtype), None if self.code.scales is None else scales.to(torch.int8)
        )

    def _steps(self, group: int) -> tuple[Tensor, Tensor]:
        """Return the steps [rows] between the levels of a group, and their inverses.

        Those of the last group are kept: its columns follow one another, and a card waits for each small operation.
        """
        if self._present is None or self._present[0] != group:
            steps = self.units[:, group * self.group // self.block] * self.scales[:, group]
            self._present = group, steps, inverse(steps)
        return self._present[1:]

    def _feed_back(self) -> None:
        """Choose scales and levels in order, each column making up for the errors of those before it."""
        columns = self.weight.shape[1]
        several = self.block if self.block > WIDTH else WIDTH // self.block * self.block
        width = several if self.code.group else WIDTH
        if not self.code.group:
            weights = self.metric.weights
            self.units[:, 0] = search_group_unit(self.table, self.weight, weights, self.dtype)
        for start in range(0, columns, width):
            stop = min(start + width, columns)
            targets = self.weight[:, start:stop] + self.errors[:, :start] @ self.metric.feedback[:start, start:stop]
            for column in range(start, stop):
                at = column - start
                if self.code.group and column % self.block == 0:
                    self._choose_unit(column, targets[:, at : at + self.block])
                if self.code.scales is not None and column % self.group == 0:
                    self._choose_scale(column, targets[:, at : at + self.group], self.code.scales)
                error = self._round(column, targets[:, at])
                self.errors[:, column] = error
                targets[:, at + 1 :].addr_(error, self.metric.feedback[column, column + 1 : stop])

    def _choose_unit(self, column: int, targets: Tensor) -> None:
        """Choose the unit of the block that begins at a column."""
        weights = self.metric.weights[column : column + self.block]
        if self.code.scales is None:
            units = search_group_unit(self.table, targets, weights, self.dtype)
        else:
            groups = targets.reshape(len(targets), -1, self.group)
            units = search_unit(self.table, groups, weights.view(-1, self.group), self.code.scales, self.dtype)
        self.units[:, column // self.block] = units
        self._present = None

    def _choose_scale(self, column: int, targets: Tensor, limits: tuple[int, int]) -> None:
        """Choose the scale of the group that begins at a column, in steps of its block's unit."""
        weights, units = self.metric.weights[column : column + self.group], self.units[:, column // self.block]
        self.scales[:, column // self.group] = search_scale(self.table, targets, weights, limits, units)
        self._present = None

    def _round(self, column: int, target: Tensor) -> Tensor:
        """Choose the level of a column that is nearest to `target` [rows], and return the error of its weights."""
        steps, inverses = self._steps(column // self.group)
        numbers = self.table.numbers(target * inverses)
        self.levels[:, column] = numbers
        return self.weight[:, column] - self.table.values(numbers) * steps

    def _refit(self) -> None:
        """Fit the units of each row to its levels, where that lowers its cost."""
        rows, blocks = self.units.shape
        some = max(1, FITTED // blocks**2)
        for start in range(0, rows, some):
            self._refit_rows(slice(start, min(start + some, rows)))
        self._present = None

    def _refit_rows(self, rows: slice) -> None:
        """Fit the units of some rows to their levels, where that lowers a row's cost."""
        second, units, errors = self.metric.second, self.units[rows], self.errors[rows]
        shape = self.table.values(self.levels[rows])
        shape *= self.scales[rows].repeat_interleave(self.group, dim=1)
        gram = torch.stack(
            [
                (some @ second[start : start + self.block]).mul_(shape).view(*units.shape, -1).sum(-1)
                for start, some in zip(
                    range(0, shape.shape[1], self.block), torch.split(shape, self.block, dim=1), strict=True
                )
            ],
            dim=1,
        )
        ridge = gram.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True).mul_(RIDGE).add_(torch.finfo().tiny)
        gram.diagonal(dim1=1, dim2=2).add_(ridge)
        missing = (errors @ second).mul_(shape).view(*units.shape, -1).sum(-1, keepdim=True)
        fitted = stored(self.code, (units + torch.linalg.solve(gram, missing).squeeze(-1)).nan_to_num(), self.dtype)
        left = self.weight[rows] - shape.mul_(fitted.repeat_interleave(self.block, dim=1))
        better = (self._costs(left) < self._costs(errors)).unsqueeze(-1)
        if not self.code.signed:
            better &= (fitted >= 0).all(-1, keepdim=True)
        self.units[rows] = torch.where(better, fitted, units)
        self.errors[rows] = torch.where(better, left, errors)

    def _costs(self, errors: Tensor) -> Tensor:
        """Return the cost of each row's errors [rows, in]."""
        return (errors @ self.metric.second).mul_(errors).sum(-1)

    def _descend(self) -> None:
        """Change the level of each column to the best one, given all the others."""
        columns, second = self.weight.shape[1], self.metric.second
        slopes = self.errors @ second
        for start in range(0, columns, WIDTH):
            stop = min(start + WIDTH, columns)
            here, before = slopes[:, start:stop].clone(), self.errors[:, start:stop].clone()
            for column in range(start, stop):
                error = self.errors[:, column].clone()
                target = self.weight[:, column] - error + here[:, column - start] / second[column, column]
                self.errors[:, column] = self._round(column, target)
                here.addr_(self.errors[:, column] - error, second[column, start:stop])
            slopes += (self.errors[:, start:stop] - before) @ second[start:stop]
