"""Fits of matrices with one row per token: embeddings and output heads.

Such a table may be the largest matrix of a model. Its Gram matrix is summed over slices, and nothing of the table's
size is held in float64.
"""

import dataclasses

import torch
from torch import Tensor

from modelpress.spec.structures import Halved, Kronecker, LowRank, Pivoted
from workers.compression.math.degenerate import relative
from workers.compression.math.dominant_rows import dominant_rows
from workers.compression.math.fitting import LeastSquares, damped, fit, leading
from workers.compression.math.kronecker import WeightedTarget, weighted_fit
from workers.compression.math.permutation import grouped, search

TABLE_ROWS = 1024
"""Rows of a table that are weighted at a time."""

ROUNDING = 1e-9
"""Ridge on a Gram matrix, as a fraction of its mean diagonal, that keeps it positive definite."""


def fit_table(structure: LowRank | Pivoted, table: Tensor, outputs: Tensor, moments: Tensor) -> dict[str, Tensor]:
    """Return the factors of a `structures.CompactEmbedding` for an embedding table [tokens, dim].

    `outputs` [tokens] weighs the rows; an error δ [dim] of a row costs δ · `moments` · δᵀ, with `moments` [dim, dim].
    """
    unmoved = torch.eye(table.shape[1], dtype=torch.float64, device=table.device)
    codes, mixing, order = _table_factors(structure, table, outputs, moments, unmoved)
    factors = {"codes": codes, "mixing": mixing}
    return factors if order is None else factors | {"order": order.argsort().int()}


def fit_head(
    structure: LowRank | Pivoted, table: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor
) -> dict[str, Tensor]:
    """Return the factors of a compact linear layer for the weight of an output head [tokens, dim].

    The target is the table times `moved` [dim, dim], which carries the compensation. `outputs` [tokens] weighs the
    rows; `moments` [dim, dim] is the second moment of the head's inputs.
    """
    if len(table) <= table.shape[1]:
        root = torch.linalg.cholesky(damped(moments)[0])
        return fit(structure, LeastSquares(table.double() @ moved, root, outputs))
    codes, mixing, order = _table_factors(structure, table, outputs, moments, moved)
    if order is None:
        return {"first": mixing, "second": codes}
    return {"basis": codes, "mixing": mixing, "order": order.int()}


def _table_factors(
    structure: LowRank | Pivoted, table: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return codes [tokens, rank] of table · `moved`, the map from codes to features, and an order of the features or
    None.

    For a pivoted structure the codes are some of the features themselves; the order lists these first.
    """
    root = torch.linalg.cholesky(damped(moments)[0])
    weighted = moved @ root
    basis = leading(weighted.T @ table_gram(table, outputs) @ weighted, structure.rank)
    features = torch.linalg.solve_triangular(root, basis.T, upper=False, left=False)
    if isinstance(structure, LowRank):
        return _times(table, weighted @ basis), features, None
    pivots, others, mixing = dominant_rows(features.T)
    return _times(table, weighted @ basis @ features[:, pivots]), mixing.T, torch.cat((pivots, others))


def fit_kronecker_table(
    structure: Kronecker, table: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the factors of a `structures.KroneckerEmbedding` for an embedding table [tokens, dim].

    `outputs` and `moments` are weights as in `fit_table`; the target is the table times `moved` [dim, dim] where given.
    The right factors depend on the table through its weighted Gram matrix alone, so they are fitted to a root of that
    matrix. The best codes for them follow in closed form.
    """
    (n1, n2), terms = structure.in_shape, structure.terms
    second = damped(moments)[0]
    small = dataclasses.replace(structure, out_shape=(table.shape[1], 1))
    found = weighted_fit(small, table_target(table, outputs, moments, moved))
    # Rows e_j ⊗ b_k of the map from codes to features, in the order of the sum.
    features = torch.stack([torch.kron(torch.eye(n1).to(second), row) for row in found["right"]]).flatten(0, 1)
    own = torch.arange(n1 * n2, device=second.device)
    order = found["order_in"].long().argsort() if structure.permute_in else own
    features = features[:, order]
    weighed = second @ features.T
    coder = torch.linalg.solve(features @ weighed, weighed, left=False)
    codes = _times(table, coder if moved is None else moved @ coder)
    factors = {"codes": codes, "right": found["right"].view(terms, n2)}
    return factors | ({"order": order.int()} if structure.permute_in else {})


def fit_kronecker_head(
    structure: Kronecker, table: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor
) -> dict[str, Tensor]:
    """Return the factors of a `structures.KroneckerLinear` for the weight of an output head [tokens, dim]; see
    `fit_head`."""
    found = fit_kronecker_table(structure, table, outputs, moments, moved)
    left = found["codes"].view(len(table), structure.terms, -1).transpose(0, 1)
    order = {"order_in": found["order"].argsort().int()} if structure.permute_in else {}
    return {"left": left, "right": found["right"].unsqueeze(1), **order}


def table_target(table: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor | None = None) -> WeightedTarget:
    """Return a target [dim, dim] whose best right factors, with tiles of one row, are also the best for the table.

    `table` is [tokens, dim], with weights as in `fit_table`; it is multiplied by `moved` [dim, dim] where given.
    """
    gram = table_gram(table, outputs)
    if moved is not None:
        gram = moved.T @ gram @ moved
    root = torch.linalg.cholesky(damped(gram, ROUNDING)[0])
    return WeightedTarget(root.T, damped(moments)[0])


def _times(table: Tensor, matrix: Tensor) -> Tensor:
    """Return the product of the table and a matrix, formed in float32 and stored in the table's precision."""
    product = table.new_empty(len(table), matrix.shape[1])
    for rows, into in zip(torch.split(table, TABLE_ROWS), torch.split(product, TABLE_ROWS), strict=True):
        into.copy_(rows.float() @ matrix.float())
    return product


def table_error(
    table: Tensor, approximation: Tensor, outputs: Tensor, moments: Tensor, moved: Tensor | None = None
) -> float:
    """Return the relative weighted squared error of an approximation to a table, both [tokens, dim].

    Weights are as in `fit_table`; the target is the table times `moved` [dim, dim] where given.
    """
    lost = total = table.new_zeros((), dtype=torch.float64)
    sliced = (torch.split(tensor, TABLE_ROWS) for tensor in (table, approximation.detach(), outputs))
    for rows, approximate, weights in zip(*sliced, strict=True):
        target = rows.double() if moved is None else rows.double() @ moved
        lost = lost + (table_gram(target - approximate, weights) * moments).sum()
        total = total + (table_gram(target, weights) * moments).sum()
    return relative(float(lost), float(total))


def table_gram(table: Tensor, outputs: Tensor) -> Tensor:
    """Return Σ_v k_v² e_vᵀ e_v [dim, dim] in float64 over the rows e_v of a table [tokens, dim] with weights k
    [tokens]."""
    gram = table.new_zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for rows, weights in zip(torch.split(table, TABLE_ROWS), torch.split(outputs, TABLE_ROWS), strict=True):
        weighed = weights[:, None] * rows.double()
        gram += weighed.T @ weighed
    return gram


def table_spectrum(table: Tensor, outputs: Tensor, moments: Tensor) -> Tensor:
    """Return the squared singular values [dim], descending, of the table weighted on both sides as in `fit_table`."""
    root = torch.linalg.cholesky(damped(moments)[0])
    ascending: Tensor = torch.linalg.eigvalsh(root.T @ table_gram(table, outputs) @ root)
    return ascending.flip(0).clamp_min(0)


def fit_halved(structure: Halved, table: Tensor) -> dict[str, Tensor]:
    """Return the factors of a `structures.HalvedEmbedding` for an embedding table [tokens, dim], in the plain norm.

    Each step pairs the columns by the permutation search and replaces every pair by its best common direction b, of
    unit norm.
    """
    factors: dict[str, Tensor] = {}
    pairs = []
    # With tiles of one row only products of columns matter; the halved table's Gram matrix follows from the table's.
    gram = table_gram(table, torch.ones(len(table), device=table.device))
    for step in range(structure.times):
        width = len(gram)
        root = torch.linalg.cholesky(damped(gram, ROUNDING)[0])
        order = search(root.T, Kronecker(1, (width, 1), (width // 2, 2), permute_in=True), (grouped,)).columns
        gram = gram[order][:, order]
        pair = leading(gram.view(width // 2, 2, width // 2, 2).diagonal(dim1=0, dim2=2).sum(-1), 1).flatten()
        gram = _halve(_halve(gram, pair).T, pair)
        table = _halve(table[:, order], pair)
        pairs.append(pair)
        factors[f"order_{step}"] = order.argsort().int()
    return {"codes": table, "pairs": torch.stack(pairs), **factors}


def _halve(matrix: Tensor, pair: Tensor) -> Tensor:
    """Return the weighted sums of neighbouring columns; `pair` holds the two weights."""
    first, second = pair.tolist()
    halved: Tensor = first * matrix[:, ::2] + second * matrix[:, 1::2]
    return halved
