"""Fits of the compact structures to a matrix, in closed form or by alternation, weighted by the module's inputs.

Matrices are [out, in], inputs are rows: y = x Wᵀ. All fits minimise E‖K(T x − Ŵ x)‖², where T is the target matrix, x
runs over the inputs in the compressed model, and K is a diagonal weight on the outputs. The small eigenproblems are
solved in float64. Everything is computed where the moments lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from modelpress.spec.structures import Dense, Kronecker, LowRank, Pivoted, Structure
from workers.compression.math.degenerate import relative, ridge_of
from workers.compression.math.dominant_rows import dominant_rows, inverse_order
from workers.compression.math.kronecker import WeightedTarget, weighted_fit
from workers.compression.structures import build

DAMPING = 0.02
"""Ridge on the input moments, as a fraction of their mean diagonal."""

SLICE = 512
"""Rows of a square matrix that are computed at a time, where a second matrix of its size would need too much memory."""

FEW = 128
"""Rows that are computed at a time where several intermediate results per row are in memory together."""


@dataclass
class Moments:
    """Second moments of a module's inputs, summed over batches in float32 on the inputs' device.

    `inputs` [in, in] = Σ x xᵀ with x the input in the compressed model. `cross` [in, in] = Σ x° xᵀ with x° the same
    token's input in the original model, or None as long as both models agree. `tokens` counts the summands.
    """

    inputs: Tensor
    cross: Tensor | None = None
    tokens: int = 0

    @classmethod
    def empty(cls, features: int, device: torch.device | None = None) -> "Moments":
        """Return moments of no tokens for `features` inputs."""
        return cls(torch.zeros(features, features, device=device))

    def add(self, compressed: Tensor, original: Tensor | None = None) -> None:
        """Add inputs [..., in] of the same tokens in both models; leave `original` out where they agree."""
        x = compressed.flatten(0, -2).float()
        before = x if original is None else original.flatten(0, -2)
        if original is not None and self.cross is None:
            self.cross = self.inputs.clone()
        if self.cross is not None:
            _add_product(self.cross, before, x)
        _add_gram(self.inputs, x)
        self.tokens += x.shape[0]

    def reorder(self, order: Tensor) -> None:
        """Permute the moments to match inputs that were put into `order` [in], which lists their former positions."""
        self.inputs = _reordered(self.inputs, order)
        if self.cross is not None:
            self.cross = _reordered(self.cross, order)


def _reordered(matrix: Tensor, order: Tensor) -> Tensor:
    """Return the matrix [n, n] with its rows and columns in `order` [n]."""
    result = torch.empty_like(matrix)
    for rows, into in zip(torch.split(order, SLICE), torch.split(result, SLICE), strict=True):
        torch.index_select(matrix[rows], 1, order, out=into)
    return result


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ · right to `sums`; `right` is float32."""
    for rows, columns in zip(torch.split(sums, SLICE), torch.split(left, SLICE, dim=1), strict=True):
        rows += columns.T.float() @ right


def _add_gram(sums: Tensor, x: Tensor) -> None:
    """Add xᵀ · x to `sums`. One half is computed and mirrored to the other."""
    for start in range(0, len(sums), SLICE):
        stop = min(start + SLICE, len(sums))
        rows = x[:, start:stop].T @ x[:, :stop]
        sums[start:stop, :stop] += rows
        sums[:start, start:stop] += rows[:, :start].T


@dataclass(frozen=True)
class LeastSquares:
    """One weighted least-squares fit, in float64.

    `target` T [out, in]; `inputs` L [in, in], lower triangular, with LLᵀ = E[x xᵀ] damped; `outputs` [out], the
    diagonal of K, or None for the identity.
    """

    target: Tensor
    inputs: Tensor
    outputs: Tensor | None = None

    def error(self, approximation: Tensor) -> float:
        """Return the relative weighted error of the output, E‖K(T − Ŵ)x‖² / E‖KTx‖², under the damped moments.

        `approximation` is Ŵ [out, in].
        """
        lost = total = self.target.new_zeros(())
        for start in range(0, len(self.target), FEW):
            rows = slice(start, start + FEW)
            target = self.target[rows]
            lost = lost + self._energy(target - approximation[rows].detach().to(target), rows)
            total = total + self._energy(target, rows)
        return relative(float(lost), float(total))

    def reordered(self, order: Tensor) -> "LeastSquares":
        """Return the same fit with its outputs in `order` [out], which lists their present positions."""
        return LeastSquares(self.target[order], self.inputs, None if self.outputs is None else self.outputs[order])

    def weighted(self) -> WeightedTarget:
        """Return the target of a fit by Kronecker sums."""
        return WeightedTarget(self.target, self.inputs @ self.inputs.T, self.outputs)

    def gram(self) -> Tensor:
        """Return the smaller of G Gᵀ and Gᵀ G for G = K T L, [min(out, in), min(out, in)]; only a slice of G is ever
        formed."""
        out_features, in_features = self.target.shape
        smaller = min(out_features, in_features)
        gram = self.target.new_zeros(smaller, smaller)
        for start in range(0, max(out_features, in_features), SLICE):
            some = slice(start, start + SLICE)
            if out_features <= in_features:
                # The root is zero above its diagonal, so earlier rows contribute nothing.
                columns = self._weigh(self.target[:, start:] @ self.inputs[start:, some])
                gram.addmm_(columns, columns.T)
            else:
                rows = self._weigh(self.target[some] @ self.inputs, some)
                gram.addmm_(rows.T, rows)
        return gram

    def _energy(self, matrix: Tensor, rows: slice) -> Tensor:
        """Return ‖K · matrix · L‖² for the rows `rows` of a matrix [out, in]; `matrix` holds only these rows."""
        return self._weigh(matrix @ self.inputs, rows).square_().sum()

    def _weigh(self, product: Tensor, rows: slice = slice(None)) -> Tensor:
        """Multiply a product [rows, n] in place by the output weights of its rows."""
        return product if self.outputs is None else product.mul_(self.outputs[rows, None])


def problem(
    weight: Tensor,
    moments: Moments,
    *,
    damping: float = DAMPING,
    compensation: float = 0.0,
    outputs: Tensor | None = None,
    spend: bool = False,
) -> LeastSquares:
    """Return the fit of a linear module to what the original model outputs on the compressed model's inputs.

    Args:
        weight: the module's weight W [out, in].
        moments: second moments of its inputs.
        damping: ridge on every direction, as a fraction of the mean input energy; a few thousand tokens say little
            about the directions that they hardly reach.
        compensation: a in T = W((1 − a) I + a C M⁻¹), with M and C the damped second and cross moments. 1 gives the
            ridge-regularised least-squares map to the original's outputs, 0 gives T = W.
        outputs: the diagonal of K [out], such as the root mean square of the loss's gradient at each output.
        spend: empty `moments` on the way to save memory; set it for the last module that needs them.
    """
    weight = weight.detach().to(moments.inputs.device)
    outputs = None if outputs is None else outputs.to(weight.device)
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
        return LeastSquares(weight.to(torch.float64, copy=True), root, outputs)
    return LeastSquares(_compensated_target(weight, crossed, root, ridge, compensation), root, outputs)


def _float64_product(matrix: Tensor, other: Tensor) -> Tensor:
    """Return the product of two matrices of any precision in float64; convert a slice of the second one at a time."""
    matrix = matrix.double()
    product = matrix.new_empty(len(matrix), other.shape[1])
    for columns, into in zip(torch.split(other, SLICE, dim=1), torch.split(product, SLICE, dim=1), strict=True):
        into.copy_(matrix @ columns.double())
    return product


def _cholesky(second: Tensor) -> Tensor:
    """Overwrite the symmetric float64 matrix with its lower triangular Cholesky root and return it."""
    # LAPACK works on columns: only the transposed view is factored without a copy.
    root: Tensor = torch.linalg.cholesky(second.T, out=second.T)
    return root


def _compensated_target(weight: Tensor, crossed: Tensor, root: Tensor, ridge: float, compensation: float) -> Tensor:
    """Overwrite `crossed` = W C with T for the weight W [out, in] and return it; C has not been damped by the ridge
    yet."""
    for given, rows in zip(torch.split(weight, FEW), torch.split(crossed, FEW), strict=True):
        original = given.double()
        half = torch.linalg.solve_triangular(root.T, rows.add_(original, alpha=ridge), upper=True, left=False)
        solved = torch.linalg.solve_triangular(root, half, upper=False, left=False)
        torch.lerp(original, solved, compensation, out=rows)
    return crossed


def fit(structure: Structure, site: LeastSquares) -> dict[str, Tensor]:
    """Return the float64 factors of the structure that fit best, by the names in `workers.compression.structures`.

    A folded structure also gets `order` [out], which is no factor: it lists the outputs in the order in which the
    factors give them. Raises ValueError for structures that are not fitted to a single matrix.
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
            raise ValueError(f"{structure} cannot be fitted to a single matrix")


def low_rank(site: LeastSquares, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors [out, rank] and [rank, in] of T: the truncated singular value decomposition of K T L.

    By Eckart and Young the weighted error is the sum of the squared singular values left out. Only the smaller Gram
    matrix is decomposed, and no inverse of an ill-conditioned matrix is needed: the subspace is applied to T as a
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
    """Return the product second · first rewritten exactly with an identity in one factor; see
    `spec.structures.Pivoted`.

    `second` is [out, rank], `first` [rank, in]; one of them is overwritten and becomes the basis. With `folded` pivots,
    `order` [out] is no factor: it lists the outputs in the order in which the factors give them.

    Pivots come from an LU decomposition with partial pivoting. They are then exchanged while an entry of the mixing
    matrix exceeds PIVOT_BOUND (the maximum-volume iteration of Goreinov et al., 2010).
    """
    if folded or second.shape[0] <= first.shape[1]:
        pivots, others, mixing = dominant_rows(second)
        listed = torch.cat((pivots, others))
        order = listed if folded else inverse_order(listed)
        return {"basis": _multiply(first, second[pivots]), "mixing": mixing, "order": order.int()}
    pivots, others, mixing = dominant_rows(first.T)
    basis = _multiply(second.T, first[:, pivots].T).T
    return {"basis": basis, "mixing": mixing.T, "order": torch.cat((pivots, others)).int()}


def _multiply(matrix: Tensor, square: Tensor) -> Tensor:
    """Overwrite the matrix with the product square · matrix and return it."""
    for columns in torch.split(matrix, SLICE, dim=1):
        columns.copy_(square @ columns)
    return matrix


def matrix(structure: Structure, factors: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Return the matrix [out, in] that the factors stand for, in the shape and precision of `like`."""
    out_features, in_features = like.shape
    layer = build(structure.to_dict(), in_features, out_features, bias=False, dtype=like.dtype)
    layer.load_state_dict(dict(factors))
    return layer.dense().detach()


def spectrum(site: LeastSquares) -> Tensor:
    """Return the squared singular values [min(out, in)] of K T L, descending: the error that each rank removes."""
    ascending: Tensor = torch.linalg.eigvalsh(site.gram())
    return ascending.flip(0).clamp_min(0)


def damped(moments: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """Return a float64 copy of the moments [n, n] with a ridge on its diagonal, and the ridge.

    `damping` is the ridge as a fraction of the mean diagonal.
    """
    second = moments.to(torch.float64, copy=True)
    return second, _damp(second, damping)


def _damp(second: Tensor, damping: float) -> float:
    """Add the ridge to the diagonal in place and return the ridge."""
    ridge = ridge_of(second.diagonal(), damping)
    second.diagonal().add_(ridge)
    return ridge


def matrix_of(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer as [out, in], whichever way round the module stores it."""
    weight = cast("Tensor", module.weight)
    return weight if isinstance(module, nn.Linear) else weight.T


def leading(gram: Tensor, rank: int) -> Tensor:
    """Return the eigenvectors [n, rank] of a symmetric matrix's largest eigenvalues; `gram` [n, n] is overwritten."""
    values = gram.new_empty(len(gram))
    # LAPACK works on columns: only the transposed view is decomposed without a copy.
    vectors: Tensor = torch.linalg.eigh(gram.T, out=(values, gram.T)).eigenvectors
    return vectors[:, -rank:]
