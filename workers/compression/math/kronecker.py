"""Fits of sums of Kronecker products to a matrix, in the plain norm and in a norm weighted by inputs and outputs.

A sum is Σ_k A_k ⊗ B_k with A_k = `left`[k] of m1 × n1 and B_k = `right`[k] of m2 × n2. Where the structure allows it,
rows and columns are permuted before and after.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from modelpress.spec.structures import Kronecker, Structure
from workers.compression.math.permutation import grouped, search, stratified

ALTERNATIONS = 4
"""Rounds of solving for one Kronecker factor given the other. On matrices of a real model the fourth lowers the norm of
the error by about 1 % at most."""

STEPS = 4
"""Upper bound of conjugate gradient steps when solving for one factor."""

SOLVED = 1e-6
"""Fraction of its first squared residual at which a system counts as solved."""

RIDGE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Ridge on the normal equations as a fraction of their mean diagonal, by precision: a little above rounding level."""

SEPARATIONS = 4
"""Rounds of power iteration for the nearest product of two smaller moment matrices."""


def data_free(structure: Structure, target: Tensor) -> dict[str, Tensor]:
    """Return the factors of Σ_k A_k ⊗ B_k that approximate `target` [out, in] best in the plain norm.

    Rows and columns are put into the best order that is found, where the structure allows one. Raises ValueError for
    other structures.
    """
    if not isinstance(structure, Kronecker):
        raise ValueError(f"only Kronecker sums have a data-free fit, not {structure}")
    orders: dict[str, Tensor] = {}
    if structure.permute_in or structure.permute_out:
        found = search(target, structure, (grouped,))
        target = target[found.rows][:, found.columns]
        orders = stored_orders(structure, found.rows, found.columns)
    left, right = rearranged_fit(structure, target)
    return {"left": left, "right": right, **orders}


def stored_orders(structure: Kronecker, rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """Return the index vectors of a permuted sum by the names of `structures.KroneckerLinear`.

    `rows` [out] and `columns` [in] list the matrix's rows and columns in the order of the sum.
    """
    orders = {"order_in": columns.int()} if structure.permute_in else {}
    return orders | ({"order_out": rows.argsort().int()} if structure.permute_out else {})


def rearranged_fit(structure: Kronecker, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [terms, m1, n1] and B [terms, m2, n2] that are best in the plain norm for `target` [out, in], largest
    term last.

    They are the truncated singular value decomposition of the rearranged matrix (Van Loan and Pitsianis, 1993).
    """
    (m1, m2), (n1, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    tiles = target.reshape(m1, m2, n1, n2).transpose(1, 2).reshape(m1 * n1, m2 * n2)
    tall = m1 * n1 >= m2 * n2
    vectors: Tensor = torch.linalg.eigh(tiles.T @ tiles if tall else tiles @ tiles.T).eigenvectors
    basis = vectors[:, -terms:]
    left, right = (tiles @ basis, basis) if tall else (basis, tiles.T @ basis)
    return left.T.reshape(terms, m1, n1), right.T.reshape(terms, m2, n2)


@dataclass(frozen=True)
class WeightedTarget:
    """The target of a fit: W [out, in] in the norm E‖K(W − Ŵ)x‖².

    `moments` [in, in] is E[x xᵀ]; `outputs` [out] is the diagonal of K, or None for the identity. All are float64, or
    whatever `to` has made of them.
    """

    matrix: Tensor
    moments: Tensor
    outputs: Tensor | None = None

    def reordered(self, rows: Tensor, columns: Tensor) -> "WeightedTarget":
        """Return the same fit with outputs and inputs in the order that `rows` [out] and `columns` [in] list."""
        outputs = None if self.outputs is None else self.outputs[rows]
        return WeightedTarget(self.matrix[rows][:, columns], self.moments[columns][:, columns], outputs)

    def to(self, dtype: torch.dtype) -> "WeightedTarget":
        """Return the same fit in another precision."""
        outputs = None if self.outputs is None else self.outputs.to(dtype)
        return WeightedTarget(self.matrix.to(dtype), self.moments.to(dtype), outputs)

    def scaled(self) -> Tensor:
        """Return K W D [out, in] with D² the diagonal of the moments, which treats the inputs as uncorrelated."""
        scaled = self.matrix * self.moments.diagonal().sqrt()
        return scaled if self.outputs is None else self.outputs[:, None] * scaled

    def less(self, matrix: Tensor) -> "WeightedTarget":
        """Return the target that remains after a matrix [out, in] has been subtracted."""
        return replace(self, matrix=self.matrix - matrix)

    def pulled(self, matrix: Tensor) -> Tensor:
        """Return K² · matrix · E[x xᵀ]: the gradient of ½ E‖K · matrix · x‖² with respect to the matrix [out, in]."""
        pulled = matrix @ self.moments
        return pulled if self.outputs is None else self.outputs.square()[:, None] * pulled

    def energy(self) -> float:
        """Return E‖K W x‖²."""
        return float((self.pulled(self.matrix) * self.matrix).sum())


def weighted_fit(structure: Kronecker, target: WeightedTarget) -> dict[str, Tensor]:
    """Return the factors that fit best in the norm of the target, by the names of `structures.KroneckerLinear`.

    The orders come from a search on K W D (`WeightedTarget.scaled`) that starts from strata or groups. The fit
    alternates between solving for A and for B, and no round raises the error. It goes on from the better of two after
    their first round: the optimum for separable weights, and that of the plain norm. Of a folded structure, `order`
    [out] is no factor: it lists the outputs in the order in which the factors give them. The factors are float64.

    The rounds are computed in float32, which takes half the time, and again in float64 if that lowers no error.
    """
    if not bool(target.matrix.any()):
        return _nothing(structure, target)
    rows, columns = best_orders(structure, target)
    placed = target.reordered(rows, columns)
    factors = stored_orders(structure, rows, columns) | ({"order": rows} if structure.folded else {})
    starts = [separable_fit(structure, placed), rearranged_fit(structure, placed.matrix)]
    found = _alternated(structure, placed, starts, torch.float32)
    if not _energy_left(placed, found) < min(_energy_left(placed, start) for start in starts):
        found = _alternated(structure, placed, starts, torch.float64)
    left, right = found
    return {"left": left.contiguous(), "right": right.contiguous(), **factors}


def _alternated(
    structure: Kronecker, target: WeightedTarget, starts: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return A and B in float64 after some rounds, computed in `dtype`, from the start that is best after the first.

    If `dtype` is too coarse to solve the equations, return the first start.
    """
    rounded = target.to(dtype)
    try:
        begun = [_alternate(structure, rounded, *(factor.to(dtype) for factor in start)) for start in starts]
        left, right = min(begun, key=lambda found: _energy_left(rounded, found))
        for _ in range(ALTERNATIONS - 1):
            left, right = _alternate(structure, rounded, left, right)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch exports it without saying so
        if dtype == torch.float64:
            raise
        return starts[0]
    return left.double(), right.double()


def _energy_left(target: WeightedTarget, factors: tuple[Tensor, Tensor]) -> float:
    """Return the squared error of the sum of these A and B."""
    return target.less(kronecker_sum(*factors)).energy()


def _nothing(structure: Kronecker, target: WeightedTarget) -> dict[str, Tensor]:
    """Return the factors of a matrix of zeros, in its own order: there is nothing to search by."""
    rows, columns = _own_orders(target.matrix)
    (m1, m2), (n1, n2) = structure.out_shape, structure.in_shape
    return {
        "left": target.matrix.new_zeros(structure.terms, m1, n1),
        "right": target.matrix.new_zeros(structure.terms, m2, n2),
        **stored_orders(structure, rows, columns),
        **({"order": rows} if structure.folded else {}),
    }


def best_orders(structure: Kronecker, target: WeightedTarget) -> tuple[Tensor, Tensor]:
    """Return the best order found of the target's rows [out] and columns [in], each if the structure permutes them."""
    searched = replace(structure, permute_out=structure.permute_out or structure.folded)
    if not (searched.permute_in or searched.permute_out):
        return _own_orders(target.matrix)
    found = search(target.scaled(), searched, (stratified, grouped))
    return found.rows, found.columns


def separable_fit(structure: Kronecker, target: WeightedTarget) -> tuple[Tensor, Tensor]:
    """Return A [terms, m1, n1] and B [terms, m2, n2] that are best if moments and squared row weights are products,
    M1 ⊗ M2 and u ⊗ v.

    Both are replaced by a product near to them. The weighted norm of W is then the plain norm of (U ⊗ V)^½ W (L1 ⊗ L2)
    with Li Liᵀ = Mi, whose optimum `rearranged_fit` gives.
    """
    (m1, m2), (n1, n2) = structure.out_shape, structure.in_shape
    outer, inner = _nearest_product(target.moments, n1, n2)
    rows = [weights.sqrt()[:, None] for weights in _row_weights(structure, target)]
    tiles = torch.einsum("apbq,bc,qd->apcd", target.matrix.reshape(m1, m2, n1, n2), outer, inner)
    weighed = tiles * rows[0][:, :, None, None] * rows[1][None, :, :, None]
    left, right = rearranged_fit(structure, weighed.reshape(m1 * m2, n1 * n2))
    return _divide_weights_out(left, rows[0], outer), _divide_weights_out(right, rows[1], inner)


def errors_by_terms(structure: Kronecker, target: WeightedTarget) -> Tensor:
    """Return the squared weighted errors E‖K(W − Ŵ)x‖² of sums of 0, 1, …, `terms` terms, [terms + 1].

    Permuted structures are measured in strata. B is the optimum for separable weights, and A the exact solution for
    this B. The normal equations of A for fewer terms are a leading block of those for all terms, so one Cholesky
    decomposition solves them for every number of terms. A real fit alternates further from there, so these errors are
    close upper bounds; where the row weights are far from a product, they are bounds and not close.
    """
    if not bool(target.matrix.any()):
        return target.matrix.new_zeros(structure.terms + 1)
    placed = target.reordered(*_strata(structure, target))
    terms, (n1, _) = structure.terms, structure.in_shape
    outer, inner = _row_weights(structure, placed)
    _, ascending = separable_fit(structure, placed)
    equations = _LeftEquations(structure, placed, ascending.flip(0), outer, inner)
    pulled = (placed.matrix @ placed.moments).reshape(*structure.out_shape, -1) * inner[:, None]
    sides = equations.by_row(equations.gradient(pulled.flatten(0, 1)))
    solved = torch.linalg.solve_triangular(equations.root, sides, upper=False, left=True)
    by_term = (solved.square() @ outer).reshape(terms, n1).sum(1)
    total = replace(placed, outputs=torch.outer(outer, inner).flatten().sqrt()).energy()
    left_over = (1 - torch.cat((by_term.new_zeros(1), by_term.cumsum(0))) / total).clamp_min(0)
    return left_over * placed.energy()


def kronecker_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return Σ_k A_k ⊗ B_k [m1 m2, n1 n2] for A [terms, m1, n1] and B [terms, m2, n2]."""
    (terms, m1, n1), (_, m2, n2) = left.shape, right.shape
    tiles = left.reshape(terms, -1).T @ right.reshape(terms, -1)
    return tiles.reshape(m1, n1, m2, n2).transpose(1, 2).reshape(m1 * m2, n1 * n2)


def _alternate(structure: Kronecker, target: WeightedTarget, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return a better A for the given B, and then a better B for that A."""
    outer, inner = _row_weights(structure, target)
    left = _solve(_LeftEquations(structure, target, right, outer, inner), left)
    return left, _solve(_RightEquations(structure, target, left, outer, inner), right)


class _Equations(Protocol):
    """The normal equations of one factor while the other one is fixed."""

    target: WeightedTarget

    def sum_with(self, factor: Tensor) -> Tensor:
        """Return Σ_k A_k ⊗ B_k [out, in] with this factor."""

    def gradient(self, matrix: Tensor) -> Tensor:
        """Return the gradient of ½ E‖K Ŵ x‖² with respect to the factor; `matrix` [out, in] is K² Ŵ E[x xᵀ]."""

    def precondition(self, gradient: Tensor) -> Tensor:
        """Return the exact solution for a right-hand side if the squared row weights were a product."""


class _LeftEquations:
    """The normal equations of A. Under row weights u ⊗ v all rows of A share one matrix over (k, j1): `root` rootᵀ."""

    def __init__(
        self, structure: Kronecker, target: WeightedTarget, right: Tensor, outer: Tensor, inner: Tensor
    ) -> None:
        self.structure, self.target, self.right, self.outer = structure, target, right, outer
        (n1, n2), terms = structure.in_shape, structure.terms
        products = torch.einsum("kpc,lpd->klcd", right, inner[:, None] * right)
        gram = torch.einsum("klcd,acbd->kalb", products, target.moments.reshape(n1, n2, n1, n2))
        self.root = _root(gram.reshape(terms * n1, terms * n1))

    def sum_with(self, factor: Tensor) -> Tensor:
        return kronecker_sum(factor, self.right)

    def gradient(self, matrix: Tensor) -> Tensor:
        (m1, m2), (n1, n2) = self.structure.out_shape, self.structure.in_shape
        return torch.einsum("ipbd,kpd->kib", matrix.reshape(m1, m2, n1, n2), self.right)

    def precondition(self, gradient: Tensor) -> Tensor:
        sides = self.by_row(gradient / self.outer[:, None])
        terms, m1, n1 = gradient.shape
        return torch.cholesky_solve(sides, self.root).reshape(terms, n1, m1).transpose(1, 2)

    def by_row(self, gradient: Tensor) -> Tensor:
        """Reshape [terms, m1, n1] to [terms · n1, m1]."""
        return gradient.transpose(1, 2).flatten(0, 1)


class _RightEquations:
    """The normal equations of B. Under row weights u ⊗ v all rows of B share one matrix over (k, j2): `root` rootᵀ."""

    def __init__(
        self, structure: Kronecker, target: WeightedTarget, left: Tensor, outer: Tensor, inner: Tensor
    ) -> None:
        self.structure, self.target, self.left, self.inner = structure, target, left, inner
        (n1, n2), terms = structure.in_shape, structure.terms
        products = torch.einsum("kia,lib->klab", left, outer[:, None] * left)
        gram = torch.einsum("klab,acbd->kcld", products, target.moments.reshape(n1, n2, n1, n2))
        self.root = _root(gram.reshape(terms * n2, terms * n2))

    def sum_with(self, factor: Tensor) -> Tensor:
        return kronecker_sum(self.left, factor)

    def gradient(self, matrix: Tensor) -> Tensor:
        (m1, m2), (n1, n2) = self.structure.out_shape, self.structure.in_shape
        return torch.einsum("ipbd,kib->kpd", matrix.reshape(m1, m2, n1, n2), self.left)

    def precondition(self, gradient: Tensor) -> Tensor:
        sides = (gradient / self.inner[:, None]).transpose(1, 2).flatten(0, 1)
        terms, m2, n2 = gradient.shape
        return torch.cholesky_solve(sides, self.root).reshape(terms, n2, m2).transpose(1, 2)


def _solve(equations: _Equations, start: Tensor) -> Tensor:
    """Return the factor after a few steps of preconditioned conjugate gradients, none of which raises the error.

    One step solves the equations exactly where the row weights are a product.
    """
    factor, target = start, equations.target
    residual = equations.gradient(target.pulled(target.less(equations.sum_with(factor)).matrix))
    direction = preconditioned = equations.precondition(residual)
    slope = float((residual * preconditioned).sum())
    least = SOLVED * slope
    for _ in range(STEPS):
        image = equations.gradient(target.pulled(equations.sum_with(direction)))
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        factor = factor + slope / curvature * direction
        residual = residual - slope / curvature * image
        preconditioned = equations.precondition(residual)
        slope, before = float((residual * preconditioned).sum()), slope
        if slope <= least:
            break
        direction = preconditioned + slope / before * direction
    return factor


def _own_orders(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the rows and of the columns of a matrix, in order."""
    rows, columns = (torch.arange(size, device=matrix.device) for size in matrix.shape)
    return rows, columns


def _row_weights(structure: Kronecker, target: WeightedTarget) -> tuple[Tensor, Tensor]:
    """Return u [m1] and v [m2] whose product is close to the squared weights of the target's rows."""
    outputs = target.outputs
    if outputs is None:
        m1, m2 = structure.out_shape
        return target.matrix.new_ones(m1), target.matrix.new_ones(m2)
    squared = outputs.square().reshape(structure.out_shape).clamp_min(torch.finfo(torch.float64).eps ** 2)
    return squared.mean(1), squared.mean(0) / squared.mean()


def _strata(structure: Kronecker, target: WeightedTarget) -> tuple[Tensor, Tensor]:
    """Return the rows and columns in strata of the energy of K W D, each only where the structure allows an order."""
    scaled, (_, m2), (_, n2) = target.scaled(), structure.out_shape, structure.in_shape
    rows, columns = _own_orders(scaled)
    if structure.permute_out or structure.folded:
        rows = stratified(scaled.T, m2)
    return rows, stratified(scaled, n2) if structure.permute_in else columns


def _nearest_product(moments: Tensor, outer_size: int, inner_size: int) -> tuple[Tensor, Tensor]:
    """Return lower triangular roots of M1 [n1, n1] and M2 [n2, n2] whose Kronecker product is nearest to the moments.

    The product is the leading singular pair of the rearranged moments, which is positive definite because they are.
    """
    blocks = moments.reshape(outer_size, inner_size, outer_size, inner_size)
    inner = torch.eye(inner_size, dtype=moments.dtype, device=moments.device)
    outer = torch.eye(outer_size, dtype=moments.dtype, device=moments.device)
    for _ in range(SEPARATIONS):
        outer = torch.einsum("apbq,pq->ab", blocks, inner) / inner.square().sum()
        inner = torch.einsum("apbq,ab->pq", blocks, outer) / outer.square().sum()
    return _root(outer), _root(inner)


def _divide_weights_out(factors: Tensor, rows: Tensor, root: Tensor) -> Tensor:
    """Return the factors [terms, m, n] with the row weights and the root of the inputs divided out."""
    solved: Tensor = torch.linalg.solve_triangular(root, factors.flatten(0, 1), upper=False, left=False)
    return solved.view_as(factors) / rows


def _root(gram: Tensor) -> Tensor:
    """Return the Cholesky root of a matrix, after a ridge at rounding level, so that linearly dependent terms stay
    solvable.

    The ridge is added to `gram` in place.
    """
    gram.diagonal().add_(RIDGE[gram.dtype] * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    root: Tensor = torch.linalg.cholesky(gram)
    return root
