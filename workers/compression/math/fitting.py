"""Closed-form and alternating fits of the compact structures to a matrix, weighted by what passes through it.

Matrices are [out, in], inputs are rows: y = x Wᵀ. All fits minimise E‖K(T x − Ŵ x)‖², where T is the target matrix, x
runs over the inputs in the compressed model, and K weighs the outputs. The small eigenproblems are solved in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from workers.compression.math.degenerate import relative, ridge_of
from workers.compression.math.kronecker import WeightedTarget, weighted_fit
from workers.compression.spec.structures import Dense, Kronecker, LowRank, Pivoted, Structure
from workers.compression.structures import build

PIVOT_BOUND = 1.05
"""Pivots are exchanged until no entry of the mixing matrix exceeds this: it then rounds as harmlessly as a weight."""

DAMPING = 0.02
"""Ridge on the input moments, as part of their mean diagonal."""

SLICE = 512
"""Rows of a square matrix that are computed at a time, where another matrix of its size would be too many."""

FEW = 128
"""The same, where several results for these rows wait beside each other."""

LARGEST_MIXING = 1e3
"""An entry of the mixing matrix beyond this is that of columns which depend on one another but for rounding."""

NULL = 1e-12
"""Singular values below this part of the largest one are rounding."""

EXCHANGES = 2
"""Exchanges at most, per pivot. Each enlarges the pivots' volume; only rounding could make them go on for ever."""


@dataclass
class Moments:
    """Second moments of a site's inputs, gathered over batches: `inputs` = Σ x xᵀ in the compressed stream, `cross` =
    Σ x° xᵀ with x° the same token's input in the original's, or None as long as the two streams are one. Sums are
    float32; `tokens` counts the rows."""

    inputs: Tensor
    cross: Tensor | None = None
    tokens: int = 0

    @classmethod
    def empty(cls, features: int) -> "Moments":
        return cls(torch.zeros(features, features))

    def add(self, compressed: Tensor, original: Tensor | None = None) -> None:
        """Both [..., in]: the same tokens in the two streams; `original` is left out where the streams are one."""
        x = compressed.flatten(0, -2).float()
        before = x if original is None else original.flatten(0, -2)
        if original is not None and self.cross is None:
            self.cross = self.inputs.clone()
        if self.cross is not None:
            _add_product(self.cross, before, x)
        _add_gram(self.inputs, x)
        self.tokens += x.shape[0]

    def reorder(self, order: Tensor) -> None:
        """For inputs that have been put into `order` [in], which lists their former places."""
        self.inputs = _reordered(self.inputs, order)
        if self.cross is not None:
            self.cross = _reordered(self.cross, order)


def _reordered(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in `order`."""
    result = torch.empty_like(matrix)
    for rows, into in zip(torch.split(order, SLICE), torch.split(result, SLICE), strict=True):
        torch.index_select(matrix[rows], 1, order, out=into)
    return result


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds leftᵀ · right, the latter in float32."""
    for rows, columns in zip(torch.split(sums, SLICE), torch.split(left, SLICE, dim=1), strict=True):
        rows += (columns.T.float() @ right).cpu()


def _add_gram(sums: Tensor, x: Tensor) -> None:
    """Adds xᵀ · x, of which one half is computed and the other its mirror image."""
    for start in range(0, len(sums), SLICE):
        stop = min(start + SLICE, len(sums))
        rows = (x[:, start:stop].T @ x[:, :stop]).cpu()
        sums[start:stop, :stop] += rows
        sums[:start, start:stop] += rows[:, :start].T


@dataclass(frozen=True)
class Problem:
    """One fit: `target` T [out, in]; `inputs` L with LLᵀ = E[x xᵀ] damped, lower triangular; `outputs` [out], the
    diagonal of K, or None for the identity.
    """

    target: Tensor
    inputs: Tensor
    outputs: Tensor | None = None

    def error(self, approximation: Tensor) -> float:
        """Relative weighted error of the output, E‖K(T − Ŵ)x‖² / E‖KTx‖² under the damped moments."""
        lost = total = 0.0
        for start in range(0, len(self.target), FEW):
            rows = slice(start, start + FEW)
            target = self.target[rows]
            lost += self._energy(target - approximation[rows].detach().to(target), rows)
            total += self._energy(target, rows)
        return relative(lost, total)

    def reordered(self, order: Tensor) -> "Problem":
        """The same fit with its outputs in `order` [out], which lists their present places."""
        return Problem(self.target[order], self.inputs, None if self.outputs is None else self.outputs[order])

    def weighted(self) -> WeightedTarget:
        """Return what a Kronecker sum is fitted to."""
        return WeightedTarget(self.target, self.inputs @ self.inputs.T, self.outputs)

    def gram(self) -> Tensor:
        """The smaller one of G Gᵀ and Gᵀ G, with G = K T L, of which only a slice is formed at a time."""
        out_features, in_features = self.target.shape
        smaller = min(out_features, in_features)
        gram = self.target.new_zeros(smaller, smaller)
        for start in range(0, max(out_features, in_features), SLICE):
            some = slice(start, start + SLICE)
            if out_features <= in_features:
                # Above its diagonal the root is zero.
                columns = self._weigh(self.target[:, start:] @ self.inputs[start:, some])
                gram.addmm_(columns, columns.T)
            else:
                rows = self._weigh(self.target[some] @ self.inputs, some)
                gram.addmm_(rows.T, rows)
        return gram

    def _energy(self, matrix: Tensor, rows: slice) -> float:
        """‖K · matrix · L‖² for some rows of a matrix."""
        return float(self._weigh(matrix @ self.inputs, rows).square_().sum())

    def _weigh(self, product: Tensor, rows: slice = slice(None)) -> Tensor:
        return product if self.outputs is None else product.mul_(self.outputs[rows, None])


def problem(
    weight: Tensor,
    moments: Moments,
    *,
    damping: float = DAMPING,
    compensation: float = 0.0,
    outputs: Tensor | None = None,
    spend: bool = False,
) -> Problem:
    """The fit of a site: its weight [out, in], moved towards what the original gave on the compressed model's inputs.

    `damping` is the part of the mean input energy added to every direction: the moments of a few thousand tokens know
    little of the directions they hardly met. With `compensation` a, T = W((1 − a) I + a C M⁻¹) with M and C the damped
    second and cross moments; a = 1 is the least-squares map to the original's outputs, ridge-regularised.
    `outputs` is the diagonal of K, such as the root mean square of the loss's gradient at each output. With `spend` the
    moments are emptied on the way: say so for the last site that needs them.
    """
    weight = weight.detach().cpu()
    crossed = None
    if compensation > 0 and moments.cross is not None:
        crossed = _float64_product(weight, moments.cross).div_(moments.tokens)
    if spend:
        moments.cross = None
    second = moments.inputs.double().div_(moments.tokens)
    if spend:
        moments.inputs = torch.empty(0)
    ridge = _damp(second, damping)
    root = _cholesky(second)
    if crossed is None:
        return Problem(weight.to(torch.float64, copy=True), root, outputs)
    return Problem(_moved(weight, crossed, root, ridge, compensation), root, outputs)


def _float64_product(matrix: Tensor, other: Tensor) -> Tensor:
    """The product in float64 of two matrices of any precision; of the second one a slice at a time is converted."""
    matrix = matrix.double()
    product = matrix.new_empty(len(matrix), other.shape[1])
    for columns, into in zip(torch.split(other, SLICE, dim=1), torch.split(product, SLICE, dim=1), strict=True):
        into.copy_(matrix @ columns.double())
    return product


def _cholesky(second: Tensor) -> Tensor:
    """The lower triangular root, in the place of the symmetric float64 matrix that it is taken of."""
    # LAPACK works on columns: only the transposed view is factored without a copy.
    root: Tensor = torch.linalg.cholesky(second.T, out=second.T)
    return root


def _moved(weight: Tensor, crossed: Tensor, root: Tensor, ridge: float, compensation: float) -> Tensor:
    """T for the weight W [out, in], in the place of `crossed` = W C, of whose C the ridge has not been added."""
    for given, rows in zip(torch.split(weight, FEW), torch.split(crossed, FEW), strict=True):
        original = given.double()
        half = torch.linalg.solve_triangular(root.T, rows.add_(original, alpha=ridge), upper=True, left=False)
        solved = torch.linalg.solve_triangular(root, half, upper=False, left=False)
        torch.lerp(original, solved, compensation, out=rows)
    return crossed


def fit(structure: Structure, site: Problem) -> dict[str, Tensor]:
    """Return the factors of the structure that fit best, float64, by the names of `structures`.

    Of a folded structure, `order` [out] is no factor: it lists the outputs in the order in which the factors give them.
    Raises ValueError for structures that are no matrix's own.
    """
    match structure:
        case Dense():
            return {"weight": site.target}
        case LowRank(rank):
            second, first = low_rank(site, rank)
            return {"first": first, "second": second}
        case Pivoted(rank, folded):
            return pivoted(*low_rank(site, rank), folded=folded)
        case Kronecker():
            return weighted_fit(structure, site.weighted())
        case _:
            raise ValueError(f"there is no fit for {structure}")


def low_rank(site: Problem, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors [out, rank] and [rank, in] of the rank: the truncated singular value decomposition of K T L.

    By Eckart and Young the weighted error is the sum of the squared singular values left out. Only the smaller Gram
    matrix is decomposed, and no inverse of an ill-conditioned matrix enters: the subspace is applied to T as a
    projection.
    """
    basis = leading(site.gram(), rank)
    if site.target.shape[0] <= site.target.shape[1]:
        if site.outputs is None:
            return basis, basis.T @ site.target
        return basis / site.outputs[:, None], (basis * site.outputs[:, None]).T @ site.target
    second = site.target @ (site.inputs @ basis)
    return second, torch.linalg.solve_triangular(site.inputs, basis.T, upper=False, left=False)


def pivoted(second: Tensor, first: Tensor, *, folded: bool = False) -> dict[str, Tensor]:
    """The same product second · first with an identity in one factor, exactly: see `spec.structures.Pivoted`. One of
    the two given becomes the basis, in its place.

    For folded pivots `order` is no factor: it lists the outputs in the order in which the factors give them.

    Pivots come from an LU decomposition with partial pivoting and are then exchanged while an entry of the mixing
    matrix exceeds PIVOT_BOUND (the maximum-volume iteration of Goreinov et al., 2010).
    """
    if folded or second.shape[0] <= first.shape[1]:
        pivots, others, mixing = dominant_rows(second)
        listed = torch.cat((pivots, others))
        order = listed if folded else _inverse(listed)
        return {"basis": _multiply(first, second[pivots]), "mixing": mixing, "order": order.int()}
    pivots, others, mixing = dominant_rows(first.T)
    basis = _multiply(second.T, first[:, pivots].T).T
    return {"basis": basis, "mixing": mixing.T, "order": torch.cat((pivots, others)).int()}


def _multiply(matrix: Tensor, square: Tensor) -> Tensor:
    """The product square · matrix, in the place of the matrix."""
    for columns in torch.split(matrix, SLICE, dim=1):
        columns.copy_(square @ columns)
    return matrix


def matrix(structure: Structure, factors: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The matrix that the factors stand for, of the shape and precision of `like` [out, in]."""
    out_features, in_features = like.shape
    layer = build(structure.to_dict(), in_features, out_features, bias=False, dtype=like.dtype)
    layer.load_state_dict(dict(factors))
    return layer.dense().detach()


def spectrum(site: Problem) -> Tensor:
    """Squared singular values of K T L, descending: what each rank is worth."""
    ascending: Tensor = torch.linalg.eigvalsh(site.gram())
    return ascending.flip(0).clamp_min(0)


def damped(moments: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """A float64 copy with the ridge on its diagonal, and the ridge."""
    second = moments.to(torch.float64, copy=True)
    return second, _damp(second, damping)


def _damp(second: Tensor, damping: float) -> float:
    """Adds the ridge to the diagonal, and returns it."""
    ridge = ridge_of(second.diagonal(), damping)
    second.diagonal().add_(ridge)
    return ridge


def matrix_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer as [out, in], whichever way round the module stores it."""
    weight = cast("Tensor", module.weight)
    return weight if isinstance(module, nn.Linear) else weight.T


def leading(gram: Tensor, rank: int) -> Tensor:
    """The eigenvectors [n, rank] of the largest eigenvalues, of a symmetric matrix that is given up for them."""
    values = gram.new_empty(len(gram))
    # LAPACK works on columns: only the transposed view is decomposed without a copy.
    vectors: Tensor = torch.linalg.eigh(gram.T, out=(values, gram.T)).eigenvectors
    return vectors[:, -rank:]


def dominant_rows(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows S of the [m, r] factor, the other rows, and mixing [m − r, r] with factor[others] = mixing · factor[S]."""
    rank = factor.shape[1]
    packed, exchanges, zero_pivot = torch.linalg.lu_factor_ex(factor)
    if zero_pivot:
        return _dominant_rows_of_fewer(factor)
    order = _exchanged(len(factor), exchanges)
    mixing = torch.linalg.solve_triangular(packed[:rank], packed[rank:], upper=False, left=False, unitriangular=True)
    del packed
    pivots, others = order[:rank].clone(), order[rank:].clone()
    for _ in range(EXCHANGES * rank if mixing.numel() else 0):
        row, column = divmod(int(mixing.abs().argmax()), rank)
        if mixing[row, column].abs() <= PIVOT_BOUND:
            break
        pivots[column], others[row] = others[row].clone(), pivots[column].clone()
        _exchange(mixing, row, column)
    # Solved anew: the exchanges have gathered rounding errors.
    mixing, singular = torch.linalg.solve_ex(factor[pivots], factor[others], left=False)
    if singular or not bool((mixing.abs() <= LARGEST_MIXING).all()):
        return _dominant_rows_of_fewer(factor)
    return pivots, others, mixing


def _dominant_rows_of_fewer(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `dominant_rows`, for columns that depend on one another: the rows are found in an orthonormal basis of the
    space that the columns span, and any rows that nothing is mixed from make up their number."""
    count, rank = factor.shape
    left, values, _ = torch.linalg.svd(factor, full_matrices=False)
    independent = int((values > NULL * values[0]).sum()) if values[0] > 0 else 0
    pivots, others = torch.arange(0), torch.arange(count)
    mixing = factor.new_zeros(count, 0)
    if independent:
        pivots, others, mixing = dominant_rows(left[:, :independent])
    spare = rank - independent
    return (
        torch.cat((pivots, others[:spare])),
        others[spare:],
        torch.cat((mixing[spare:], mixing.new_zeros(len(mixing) - spare, spare)), dim=1),
    )


def _exchanged(count: int, exchanges: Tensor) -> Tensor:
    """The order of the rows after LAPACK's exchanges: step by step with the one of that number, counted from 1."""
    order = list(range(count))
    for step, other in enumerate(exchanges.tolist()):
        order[step], order[other - 1] = order[other - 1], order[step]
    return torch.tensor(order)


def _exchange(mixing: Tensor, row: int, column: int) -> None:
    """Makes the mixing matrix what it is after a pivot and another row changed places: one step of Gauss and Jordan."""
    value = mixing[row, column].clone()
    scaled = mixing[row] / value
    scaled[column] = 0
    leaving = mixing[:, column].clone()
    mixing.addr_(leaving, scaled, alpha=-1)
    mixing[:, column] = leaving / value
    mixing[row] = -scaled
    mixing[row, column] = 1 / value


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).index_copy_(0, order, torch.arange(order.numel()))
