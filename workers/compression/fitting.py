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

SLICE = 512
"""Rows of a square matrix that are computed at a time, where another matrix of its size would be too many."""

ALTERNATIONS = 5
"""Rounds of solving for one Kronecker factor given the other; the error hardly moves afterwards."""


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
        if original is not None and self.cross is None:
            self.cross = self.inputs.clone()
        if self.cross is not None:
            _add_product(self.cross, x if original is None else original.flatten(0, -2).float(), x)
        _add_gram(self.inputs, x)
        self.tokens += x.shape[0]


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds leftᵀ · right."""
    for rows, columns in zip(torch.split(sums, SLICE), torch.split(left, SLICE, dim=1), strict=True):
        rows += (columns.T @ right).cpu()


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
        for start in range(0, len(self.target), SLICE):
            rows = slice(start, start + SLICE)
            target = self.target[rows]
            lost += self._energy(target - approximation[rows].detach().to(target), rows)
            total += self._energy(target, rows)
        return lost / total

    def weighted(self) -> Tensor:
        """K · T · L."""
        product = self.target @ self.inputs
        return product if self.outputs is None else product.mul_(self.outputs[:, None])

    def _energy(self, matrix: Tensor, rows: slice) -> float:
        """‖K · matrix · L‖² for some rows of a matrix."""
        product = matrix @ self.inputs
        return float((product if self.outputs is None else product.mul_(self.outputs[rows, None])).square_().sum())


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
    target = weight.detach().to("cpu", torch.float64, copy=True)
    crossed = None
    if compensation > 0 and moments.cross is not None:
        crossed = _sliced_product(target, moments.cross).div_(moments.tokens)
    if spend:
        moments.cross = None
    second = moments.inputs.double().div_(moments.tokens)
    if spend:
        moments.inputs = torch.empty(0)
    ridge = _damp(second, damping)
    root = _cholesky(second)
    if crossed is not None:
        crossed.add_(target, alpha=ridge)
        target.lerp_(_divided(crossed, root), compensation)
    return Problem(target, root, outputs)


def _sliced_product(matrix: Tensor, single: Tensor) -> Tensor:
    """The product of a float64 matrix with a float32 one, of which no float64 copy is made."""
    product = matrix.new_empty(len(matrix), single.shape[1])
    for columns, into in zip(torch.split(single, SLICE, dim=1), torch.split(product, SLICE, dim=1), strict=True):
        into.copy_(matrix @ columns.double())
    return product


def _cholesky(second: Tensor) -> Tensor:
    """The lower triangular root, in the place of the symmetric float64 matrix that it is taken of."""
    # LAPACK works on columns: only the transposed view is factored without a copy.
    root: Tensor = torch.linalg.cholesky(second.T, out=second.T)
    return root


def _divided(matrix: Tensor, root: Tensor) -> Tensor:
    """matrix · (L Lᵀ)⁻¹."""
    half = torch.linalg.solve_triangular(root.T, matrix, upper=True, left=False)
    return torch.linalg.solve_triangular(root, half, upper=False, left=False)


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
    basis = _leading(_smaller_gram(site.weighted()), rank)
    if site.target.shape[0] <= site.target.shape[1]:
        if site.outputs is None:
            return basis, basis.T @ site.target
        return basis / site.outputs[:, None], (basis * site.outputs[:, None]).T @ site.target
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

    The start is the optimum of the plain norm, so the result is never worse than that. `outputs` of the problem is not
    used.
    """
    start = data_free(structure, site.target)
    left, right = start["left"], start["right"]
    target, moments = site.target, site.inputs @ site.inputs.T
    if "order_out" in start:
        target = target[start["order_out"].argsort()]
    if "order_in" in start:
        columns = start["order_in"]
        target, moments = target[:, columns], moments[columns][:, columns]
    for _ in range(ALTERNATIONS):
        left = _solve_left(structure, target, moments, right)
        right = _solve_right(structure, target, moments, left)
    return start | {"left": left, "right": right}


def data_free(structure: Structure, target: Tensor) -> dict[str, Tensor]:
    """The factors of Σ_k A_k ⊗ B_k that are best in the plain norm, whatever flows through them, in the best orders
    that are allowed. Raises ValueError for other structures."""
    if not isinstance(structure, Kronecker):
        raise ValueError(f"there is no data-free fit for {structure}")
    orders: dict[str, Tensor] = {}
    if structure.permute_in or structure.permute_out:
        found = search(target, structure)
        target = target[found.rows][:, found.columns]
        orders |= {"order_in": found.columns.int()} if structure.permute_in else {}
        orders |= {"order_out": _inverse(found.rows).int()} if structure.permute_out else {}
    left, right = rearranged_fit(structure, target)
    return {"left": left, "right": right, **orders}


def rearranged_fit(structure: Kronecker, target: Tensor) -> tuple[Tensor, Tensor]:
    """A [terms, m1, n1] and B [terms, m2, n2] that are best in the plain norm: the truncated singular value
    decomposition of the rearranged matrix (Van Loan and Pitsianis)."""
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
    ascending: Tensor = torch.linalg.eigvalsh(_smaller_gram(site.weighted()))
    return ascending.flip(0).clamp_min(0)


def _smaller_gram(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


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
    unmoved = torch.eye(table.shape[1], dtype=torch.float64)
    codes, mixing, order = _table_factors(structure, table, outputs, moments, unmoved)
    factors = {"codes": codes, "mixing": mixing}
    return factors if order is None else factors | {"order": _inverse(order).int()}


def fit_head(
    structure: LowRank | Pivoted, table: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor
) -> dict[str, Tensor]:
    """The factors of a compact layer for an output head [tokens, dim].

    The target is the table times `moved` [dim, dim], which compensation brings in; `moments` [dim, dim] is the second
    moment of what enters the head. As `fit_table`, it holds nothing of the table's size in float64.
    """
    if len(table) <= table.shape[1]:
        root = torch.linalg.cholesky(_damped(moments, DAMPING)[0])
        return fit(structure, Problem(table.double() @ moved, root, outputs))
    codes, mixing, order = _table_factors(structure, table, outputs, moments, moved)
    if order is None:
        return {"first": mixing, "second": codes}
    return {"basis": codes, "mixing": mixing, "order": order.int()}


def _table_factors(
    structure: LowRank | Pivoted, table: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes [tokens, rank] of the table times `moved`, what maps them to features, and, where they are some of the
    features themselves, the order of the features with those in front."""
    root = torch.linalg.cholesky(_damped(moments, DAMPING)[0])
    weighted = moved @ root
    basis = _leading(weighted.T @ table_gram(table, outputs) @ weighted, structure.rank)
    features = torch.linalg.solve_triangular(root, basis.T, upper=False, left=False)
    if isinstance(structure, LowRank):
        return _times(table, weighted @ basis), features, None
    pivots, others, mixing = _dominant_rows(features.T)
    return _times(table, weighted @ basis @ features[:, pivots]), mixing.T, torch.cat((pivots, others))


def _times(table: Tensor, matrix: Tensor) -> Tensor:
    """The product in float32, whatever the table's own precision."""
    product = torch.empty(len(table), matrix.shape[1])
    for rows, into in zip(torch.split(table, TABLE_ROWS), torch.split(product, TABLE_ROWS), strict=True):
        torch.matmul(rows.float(), matrix.float(), out=into)
    return product


def table_error(
    table: Tensor, approximation: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor | None = None
) -> float:
    """Relative weighted squared error of an approximation to a table, both [tokens, dim], with weights as in
    `fit_table`; the target is the table times `moved` where that is given."""
    lost = total = 0.0
    sliced = (torch.split(tensor, TABLE_ROWS) for tensor in (table, approximation, outputs))
    for rows, approximate, weights in zip(*sliced, strict=True):
        target = rows.double() if moved is None else rows.double() @ moved
        lost += float((table_gram(target - approximate, weights) * moments).sum())
        total += float((table_gram(target, weights) * moments).sum())
    return lost / total


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
    second = moments.to(torch.float64, copy=True)
    return second, _damp(second, damping)


def _damp(second: Tensor, damping: float) -> float:
    """Adds the ridge to the diagonal, and returns it."""
    ridge = damping * max(second.diagonal().mean().item(), torch.finfo(torch.float64).tiny)
    second.diagonal().add_(ridge)
    return ridge


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
    packed, exchanges = torch.linalg.lu_factor(factor)
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
    return pivots, others, torch.linalg.solve(factor[pivots], factor[others], left=False)


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
