"""Closed-form and alternating fits of the compact structures to a matrix, weighted by what passes through it.

Matrices are [out, in], inputs are rows: y = x Wᵀ. All fits minimise E‖K(T x − Ŵ x)‖², where T is the target matrix, x
runs over the inputs in the compressed model, and K weighs the outputs. The small eigenproblems are solved in float64.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from workers.compression.accounting import Dense, Halved, Kronecker, LowRank, Pivoted, Structure
from workers.compression.permutation import search

PIVOT_BOUND = 1.05
"""Pivots are exchanged until no entry of the mixing matrix exceeds this: it then rounds as harmlessly as a weight."""

DAMPING = 0.02
"""Ridge on the input moments, as part of their mean diagonal."""

TABLE_ROWS = 4096
"""Rows of an embedding that are weighed at a time."""

ALTERNATIONS = 5
"""Rounds of solving for one Kronecker factor given the other; the error hardly moves afterwards."""


EXCHANGES = 2
"""Exchanges at most, per pivot. Each enlarges the pivots' volume; only rounding could make them go on for ever."""


@dataclass
class Moments:
    """Second moments of a site's inputs, gathered over batches: `inputs` = Σ x xᵀ in the compressed stream, `cross` =
    Σ x° xᵀ with x° the same token's input in the original's. Sums are float32; `tokens` counts the rows."""

    inputs: Tensor
    cross: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, features: int) -> "Moments":
        return cls(torch.zeros(features, features), torch.zeros(features, features))

    def add(self, compressed: Tensor, original: Tensor | None = None) -> None:
        """Both [..., in]: the same tokens in the two streams; `original` is left out where the streams are one."""
        x = compressed.flatten(0, -2).float()
        gram = (x.T @ x).cpu()
        self.inputs += gram
        self.cross += gram if original is None else (original.flatten(0, -2).float().T @ x).cpu()
        self.tokens += x.shape[0]


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
        difference = self.target - approximation.detach().to(self.target)
        return (self.weigh(difference).square().sum() / self.weigh(self.target).square().sum()).item()

    def weigh(self, matrix: Tensor) -> Tensor:
        """K · matrix · L."""
        weighted = matrix @ self.inputs
        return weighted if self.outputs is None else self.outputs[:, None] * weighted


def problem(
    weight: Tensor,
    moments: Moments,
    *,
    damping: float = DAMPING,
    compensation: float = 0.0,
    outputs: Tensor | None = None,
) -> Problem:
    """The fit of a site: its weight [out, in], moved towards what the original gave on the compressed model's inputs.

    `damping` is the part of the mean input energy added to every direction: the moments of a few thousand tokens know
    little of the directions they hardly met. With `compensation` a, T = W((1 − a) I + a C M⁻¹) with M and C the damped
    second and cross moments; a = 1 is the least-squares map to the original's outputs, ridge-regularised.
    `outputs` is the diagonal of K, such as the root mean square of the loss's gradient at each output.
    """
    second, ridge = _damped(moments.inputs / moments.tokens, damping)
    root: Tensor = torch.linalg.cholesky(second)
    target = weight.detach().cpu().double()
    if compensation > 0:
        cross = (moments.cross / moments.tokens).double()
        cross.diagonal().add_(ridge)
        target = torch.lerp(target, torch.cholesky_solve((target @ cross).T, root).T, compensation)
    return Problem(target, root, outputs)


def fit(structure: Structure, site: Problem) -> dict[str, Tensor]:
    """The factors of the structure that fit best, float64, by the names of `structures`."""
    match structure:
        case Dense():
            return {"weight": site.target}
        case LowRank(rank):
            second, first = low_rank(site, rank)
            return {"first": first, "second": second}
        case Pivoted(rank):
            return pivoted(*low_rank(site, rank))
        case Kronecker():
            return kronecker(structure, site)
        case _:
            raise ValueError(f"there is no fit for {structure}")


def low_rank(site: Problem, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors [out, rank] and [rank, in] of the rank: the truncated singular value decomposition of K T L.

    By Eckart and Young the weighted error is the sum of the squared singular values left out. Only the smaller Gram
    matrix is decomposed, and no inverse of an ill-conditioned matrix enters: the subspace is applied to T as a
    projection.
    """
    weighted = site.weigh(site.target)
    if weighted.shape[0] <= weighted.shape[1]:
        basis = _leading(weighted @ weighted.T, rank)
        if site.outputs is None:
            return basis, basis.T @ site.target
        return basis / site.outputs[:, None], basis.T @ (site.outputs[:, None] * site.target)
    basis = _leading(weighted.T @ weighted, rank)
    second = site.target @ (site.inputs @ basis)
    return second, torch.linalg.solve_triangular(site.inputs, basis.T, upper=False, left=False)


def pivoted(second: Tensor, first: Tensor) -> dict[str, Tensor]:
    """The same product second · first with an identity in one factor, exactly: see `accounting.Pivoted`.

    Pivots come from an LU decomposition with partial pivoting and are then exchanged while an entry of the mixing
    matrix exceeds PIVOT_BOUND (the maximum-volume iteration of Goreinov et al., 2010).
    """
    if second.shape[0] <= first.shape[1]:
        pivots, others, mixing = _dominant_rows(second)
        order = _inverse(torch.cat((pivots, others)))
        return {"basis": second[pivots] @ first, "mixing": mixing, "order": order.int()}
    pivots, others, mixing = _dominant_rows(first.T)
    return {"basis": second @ first[:, pivots], "mixing": mixing.T, "order": torch.cat((pivots, others)).int()}


def kronecker(structure: Kronecker, site: Problem) -> dict[str, Tensor]:
    """Σ_k A_k ⊗ B_k by alternating exact solves for A and B in the weighted norm, in the best orders that are allowed.

    The start is the optimum of the plain norm, the truncated singular value decomposition of the rearranged matrix (Van
    Loan and Pitsianis), so the result is never worse than that. `outputs` of the problem is not used.
    """
    moments = site.inputs @ site.inputs.T
    target = site.target
    factors: dict[str, Tensor] = {}
    if structure.permute_in or structure.permute_out:
        orders = search(target, structure)
        target = target[orders.rows][:, orders.columns]
        moments = moments[orders.columns][:, orders.columns]
        factors |= {"order_in": orders.columns.int()} if structure.permute_in else {}
        factors |= {"order_out": _inverse(orders.rows).int()} if structure.permute_out else {}
    left, right = rearranged_fit(structure, target)
    for _ in range(ALTERNATIONS):
        left = _solve_left(structure, target, moments, right)
        right = _solve_right(structure, target, moments, left)
    return {"left": left, "right": right, **factors}


def rearranged_fit(structure: Kronecker, target: Tensor) -> tuple[Tensor, Tensor]:
    """A [terms, m1, n1] and B [terms, m2, n2] that are best in the plain norm."""
    (m1, m2), (n1, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    tiles = target.reshape(m1, m2, n1, n2).transpose(1, 2).reshape(m1 * n1, m2 * n2)
    if m1 * n1 >= m2 * n2:
        basis = _leading(tiles.T @ tiles, terms)
        return (tiles @ basis).T.reshape(terms, m1, n1), basis.T.reshape(terms, m2, n2)
    basis = _leading(tiles @ tiles.T, terms)
    return basis.T.reshape(terms, m1, n1), (basis.T @ tiles).reshape(terms, m2, n2)


def _solve_left(structure: Kronecker, target: Tensor, moments: Tensor, right: Tensor) -> Tensor:
    """The best A for given B: normal equations in the (k, j1) that every row i1 of A shares."""
    (m1, m2), (n1, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    blocks = moments.view(n1, n2, n1, n2)
    half = torch.einsum("kpc,acbd->kpabd", right, blocks)
    gram = torch.einsum("kpabd,lpd->kalb", half, right).reshape(terms * n1, terms * n1)
    rows = (target @ moments).view(m1, m2, n1, n2)
    sides = torch.einsum("ipbd,lpd->lbi", rows, right).reshape(terms * n1, m1)
    return _solve(gram, sides).view(terms, n1, m1).transpose(1, 2)


def _solve_right(structure: Kronecker, target: Tensor, moments: Tensor, left: Tensor) -> Tensor:
    """The best B for given A: normal equations in the (k, j2) that every row i2 of B shares."""
    (m1, m2), (n1, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    blocks = moments.view(n1, n2, n1, n2)
    products = torch.einsum("kia,lib->kalb", left, left)
    gram = torch.einsum("kalb,acbd->kcld", products, blocks).reshape(terms * n2, terms * n2)
    rows = (target @ moments).view(m1, m2, n1, n2)
    sides = torch.einsum("ipbd,lib->ldp", rows, left).reshape(terms * n2, m2)
    return _solve(gram, sides).view(terms, n2, m2).transpose(1, 2)


def _solve(gram: Tensor, sides: Tensor) -> Tensor:
    """Least squares by Cholesky; the ridge at rounding level keeps linearly dependent terms solvable."""
    ridge = 1e-12 * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype)
    return torch.cholesky_solve(sides, torch.linalg.cholesky(gram + ridge))


def spectrum(site: Problem) -> Tensor:
    """Squared singular values of K T L, descending: what each rank is worth."""
    weighted = site.weigh(site.target)
    gram = weighted @ weighted.T if weighted.shape[0] <= weighted.shape[1] else weighted.T @ weighted
    ascending: Tensor = torch.linalg.eigvalsh(gram)
    return ascending.flip(0).clamp_min(0)


def fit_halved(structure: Halved, table: Tensor) -> dict[str, Tensor]:
    """The factors of a `structures.HalvedEmbedding`, in the plain norm: columns are paired by the permutation search,
    and each pair is replaced by its best common direction (b has unit norm), step after step."""
    factors: dict[str, Tensor] = {}
    pairs = []
    for step in range(structure.times):
        width = table.shape[1]
        form = Kronecker(1, (table.shape[0], 1), (width // 2, 2), permute_in=True)
        # With tiles of one row only the columns' products matter, and a square root of their Gram matrix has them all.
        root = torch.linalg.cholesky(_damped(table_gram(table, torch.ones(len(table))), 1e-9)[0])
        order = search(root.T, replace(form, out_shape=(width, 1))).columns
        left, right = rearranged_fit(form, table[:, order].double())
        pairs.append(right.flatten())
        factors[f"order_{step}"] = _inverse(order).int()
        table = left[0].float()
    return {"codes": table, "pairs": torch.stack(pairs), **factors}


def fit_table(structure: LowRank | Pivoted, table: Tensor, outputs: Tensor, moments: Tensor) -> dict[str, Tensor]:
    """The factors of a `structures.CompactEmbedding` for a table [tokens, dim] whose rows weigh `outputs` [tokens].

    `moments` [dim, dim] measures what an error of a row does. The table may be large: its Gram matrix is gathered in
    slices and nothing of its size is held in float64.
    """
    root = torch.linalg.cholesky(_damped(moments, DAMPING)[0])
    basis = _leading(root.T @ table_gram(table, outputs) @ root, structure.rank)
    features = torch.linalg.solve_triangular(root, basis.T, upper=False, left=False)
    if isinstance(structure, LowRank):
        return {"codes": table @ (root @ basis).to(table), "mixing": features}
    pivots, others, mixing = _dominant_rows(features.T)
    codes = table @ (root @ basis @ features[:, pivots]).to(table)
    return {"codes": codes, "mixing": mixing.T, "order": _inverse(torch.cat((pivots, others))).int()}


def table_gram(table: Tensor, outputs: Tensor) -> Tensor:
    """Σ_v k_v² e_v e_vᵀ [dim, dim] in float64 over the rows e_v [dim] of a table, weighed with k [tokens]."""
    gram = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for rows, weights in zip(torch.split(table, TABLE_ROWS), torch.split(outputs, TABLE_ROWS), strict=True):
        weighed = weights[:, None] * rows.double()
        gram += weighed.T @ weighed
    return gram


def table_spectrum(table: Tensor, outputs: Tensor, moments: Tensor) -> Tensor:
    """Squared singular values, descending, of the table weighed on both sides as in `fit_table`."""
    root = torch.linalg.cholesky(_damped(moments, DAMPING)[0])
    ascending: Tensor = torch.linalg.eigvalsh(root.T @ table_gram(table, outputs) @ root)
    return ascending.flip(0).clamp_min(0)


def _damped(moments: Tensor, damping: float) -> tuple[Tensor, float]:
    """A float64 copy with the ridge on its diagonal, and the ridge."""
    second = moments.double()
    second = second.clone() if second is moments else second
    ridge = damping * max(second.diagonal().mean().item(), torch.finfo(torch.float64).tiny)
    second.diagonal().add_(ridge)
    return second, ridge


def matrix_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer as [out, in], whichever way round the module stores it."""
    weight = cast("Tensor", module.weight)
    return weight if isinstance(module, nn.Linear) else weight.T


def _leading(gram: Tensor, rank: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -rank:]


def _dominant_rows(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows S of the [m, r] factor, the other rows, and mixing [m − r, r] with factor[others] = mixing · factor[S]."""
    rank = factor.shape[1]
    permutation, lower, _ = torch.linalg.lu(factor)
    order = permutation.argmax(0)
    mixing = torch.linalg.solve_triangular(lower[:rank], lower[rank:], upper=False, left=False, unitriangular=True)
    pivots, others = order[:rank].clone(), order[rank:].clone()
    for _ in range(EXCHANGES * rank if mixing.numel() else 0):
        row, column = divmod(int(mixing.abs().argmax()), rank)
        if mixing[row, column].abs() <= PIVOT_BOUND:
            break
        pivots[column], others[row] = others[row].clone(), pivots[column].clone()
        mixing = _exchange(mixing, row, column)
    # Solved anew: the exchanges have gathered rounding errors.
    return pivots, others, torch.linalg.solve(factor[pivots], factor[others], left=False)


def _exchange(mixing: Tensor, row: int, column: int) -> Tensor:
    """The mixing matrix after a pivot and another row changed places: one step of Gauss and Jordan."""
    value = mixing[row, column]
    scaled = mixing[row] / value
    scaled[column] = 0
    changed = mixing - torch.outer(mixing[:, column], scaled)
    changed[:, column] = mixing[:, column] / value
    changed[row] = -scaled
    changed[row, column] = 1 / value
    return changed


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).index_copy_(0, order, torch.arange(order.numel()))
