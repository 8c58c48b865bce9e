"""The compact layers and their forward passes. This file travels inside every factored checkpoint and needs only torch.

A structure is described by a dict such as {"kind": "pivoted", "rank": 352}. `build` and `build_embedding` make a module
for an out × in matrix from it, and `replace` puts such modules into a model. Weights are [out, in], as in nn.Linear.
Every module offers `dense()`, the matrix that it stands for, and computes the same result without forming it wherever
that is cheaper.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class CompactLinear(nn.Module):
    """Base of all compact linear layers: the shape, the bias, and the forward pass from factors to output."""

    def __init__(self, in_features: int, out_features: int, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [..., in] to outputs [..., out], bias included."""
        outputs = self.product(inputs)
        return outputs if self.bias is None else outputs + self.bias

    def product(self, inputs: Tensor) -> Tensor:
        """Map inputs [..., in] to outputs [..., out] without the bias."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Return the matrix [out, in] that the factors stand for."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the sizes and the shapes of the factors for `repr`."""
        shapes = ", ".join(f"{name}={list(value.shape)}" for name, value in self.named_parameters(recurse=False))
        return f"in_features={self.in_features}, out_features={self.out_features}, {shapes}"


class DenseLinear(CompactLinear):
    """A plain matrix `weight` [out, in], for a head that stores its own beside a factored embedding."""

    def __init__(self, in_features: int, out_features: int, bias: bool, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.weight = _parameter(out_features, in_features, **factory)

    def product(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight)

    def dense(self) -> Tensor:
        return self.weight


class LowRankLinear(CompactLinear):
    """The product `second` [out, rank] · `first` [rank, in]."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.first = _parameter(rank, in_features, **factory)
        self.second = _parameter(out_features, rank, **factory)

    def product(self, inputs: Tensor) -> Tensor:
        return functional.linear(functional.linear(inputs, self.first), self.second)

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(functional.linear(inputs, self.first), self.second, self.bias)

    def dense(self) -> Tensor:
        return self.second @ self.first


class PivotedLinear(CompactLinear):
    """A product of low rank with an identity in one of the factors.

    With pivot rows, which is the case if out ≤ in or the pivots are folded: `basis` [rank, in] holds the pivot rows of
    W, the others are `mixing` [out - rank, rank] · basis, and `order` [out] gives the position of each output in
    (pivots, others). Folded pivots come first and need no `order`: the modules that read the outputs are reordered
    instead.

    With pivot columns: `basis` [out, rank] holds them, the others are basis · `mixing` [rank, in - rank], and `order`
    [in] lists the inputs, pivots first.
    """

    order: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, form: Mapping[str, Any], bias: bool, **factory: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.rank, folded = form["rank"], form.get("folded", False)
        self.pivot_rows = folded or out_features <= in_features
        if self.pivot_rows:
            self.basis = _parameter(self.rank, in_features, **factory)
            self.mixing = _parameter(out_features - self.rank, self.rank, **factory)
        else:
            self.basis = _parameter(out_features, self.rank, **factory)
            self.mixing = _parameter(self.rank, in_features - self.rank, **factory)
        self.register_buffer("order", None if folded else _identity_order(min(out_features, in_features), factory))

    def product(self, inputs: Tensor) -> Tensor:
        if self.pivot_rows:
            pivots = functional.linear(inputs, self.basis)
            outputs = torch.cat((pivots, functional.linear(pivots, self.mixing)), dim=-1)
            return outputs if self.order is None else outputs[..., self.order]
        ordered = inputs[..., self.order]
        pivots, others = ordered[..., : self.rank], ordered[..., self.rank :]
        return functional.linear(pivots + functional.linear(others, self.mixing), self.basis)

    def dense(self) -> Tensor:
        if self.pivot_rows:
            matrix = torch.cat((self.basis, self.mixing @ self.basis))
            return matrix if self.order is None else matrix[self.order]
        ordered = torch.cat((self.basis, self.basis @ self.mixing), dim=1)
        return torch.empty_like(ordered).index_copy_(1, cast("Tensor", self.order).long(), ordered)


class KroneckerLinear(CompactLinear):
    """The sum P_outᵀ (Σ_k A_k ⊗ B_k) P_in with `left` [terms, m1, n1] = A and `right` [terms, m2, n2] = B.

    `order_in` [in] lists the inputs in the order of the Kronecker sum; `order_out` [out] gives the position there of
    each output. Either is None where that side is not permuted.
    """

    order_in: Tensor | None
    order_out: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, form: Mapping[str, Any], bias: bool, **factory: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        (m1, m2), (n1, n2), terms = form["out"], form["in"], form["terms"]
        self.left = _parameter(terms, m1, n1, **factory)
        self.right = _parameter(terms, m2, n2, **factory)
        self.register_buffer("order_in", _identity_order(in_features, factory) if form.get("permute_in") else None)
        self.register_buffer("order_out", _identity_order(out_features, factory) if form.get("permute_out") else None)
        right_first = terms * m2 * n1 * (n2 + m1)
        left_first = terms * m1 * n2 * (n1 + m2)
        self.right_first = right_first <= left_first
        self.multiplications = min(right_first, left_first)

    def product(self, inputs: Tensor) -> Tensor:
        if self._cheaper_dense(inputs.numel() // self.in_features):
            return functional.linear(inputs, self.dense())
        (terms, m1, n1), (_, m2, n2) = self.left.shape, self.right.shape
        ordered = inputs if self.order_in is None else inputs[..., self.order_in]
        tiles = ordered.reshape(-1, n1, n2)
        # These orders multiply the larger factor as it lies in memory, without a copy.
        if self.right_first:
            inner = torch.einsum("kdc,tbc->kbtd", self.right, tiles).reshape(terms, n1, -1)
            outputs = torch.bmm(self.left, inner).sum(0).view(m1, -1, m2).transpose(0, 1)
        else:
            inner = (self.left.flatten(0, 1) @ tiles).view(-1, terms, m1, n2)
            outputs = torch.einsum("kdc,tkac->tad", self.right, inner)
        outputs = outputs.reshape(*inputs.shape[:-1], self.out_features)
        return outputs if self.order_out is None else outputs[..., self.order_out]

    def dense(self) -> Tensor:
        terms, m1, n1 = self.left.shape
        _, m2, n2 = self.right.shape
        tiles = self.left.reshape(terms, -1).T @ self.right.reshape(terms, -1)
        matrix = tiles.view(m1, n1, m2, n2).transpose(1, 2).reshape(m1 * m2, n1 * n2)
        if self.order_in is not None:
            matrix = torch.empty_like(matrix).index_copy_(1, self.order_in.long(), matrix)
        return matrix if self.order_out is None else matrix[self.order_out]

    def _cheaper_dense(self, tokens: int) -> bool:
        """Return whether forming the matrix first needs fewer multiplications for this number of tokens."""
        forming = self.left.shape[0] * self.in_features * self.out_features
        dense = forming + tokens * self.in_features * self.out_features
        return bool(tokens * self.multiplications > dense)


class CompactEmbedding(nn.Module):
    """A factored table [tokens, dim]: `codes` [tokens, rank] and a map from codes to features.

    Low rank: the features are codes · `mixing` [rank, dim]. Pivoted: the codes themselves are `rank` of the features,
    the others are codes · `mixing` [rank, dim - rank], and `order` [dim] gives the position of each feature. `scale`
    multiplies the result of a look-up, as in some models, but not that of `logits`.
    """

    order: Tensor | None

    def __init__(self, form: Mapping[str, Any], tokens: int, dim: int, scale: float = 1.0, **factory: Any) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.scale = tokens, dim, scale
        rank, self.pivoted = form["rank"], form["kind"] == "pivoted"
        self.codes = _parameter(tokens, rank, **factory)
        self.mixing = _parameter(rank, dim - rank if self.pivoted else dim, **factory)
        self.register_buffer("order", _identity_order(dim, factory) if self.pivoted else None)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features [..., dim] of token ids [...]."""
        features = self._features(functional.embedding(ids, self.codes))
        return features if self.scale == 1.0 else features * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., dim] to logits [..., tokens]: dim / rank times cheaper than with the dense table."""
        if self.order is None:
            return functional.linear(functional.linear(hidden, self.mixing), self.codes)
        ordered = torch.empty_like(hidden).index_copy(-1, self.order.long(), hidden)
        pivots, others = ordered.tensor_split((self.codes.shape[1],), dim=-1)
        return functional.linear(pivots + functional.linear(others, self.mixing), self.codes)

    def dense(self) -> Tensor:
        """Return the table [tokens, dim], not scaled."""
        return self._features(self.codes)

    def _features(self, codes: Tensor) -> Tensor:
        features = codes @ self.mixing
        return features if self.order is None else torch.cat((codes, features), dim=-1)[..., self.order]


class HalvedEmbedding(nn.Module):
    """A table [tokens, dim] made from `codes` [tokens, dim / 2^times]: each step doubles the width by ⊗ with two
    numbers.

    `pairs` [times, 2] holds these numbers, outermost step first. The buffers `order_0`, `order_1`, … give the position
    of each feature in the product of their step. `scale` is that of `CompactEmbedding`.
    """

    def __init__(self, form: Mapping[str, Any], tokens: int, dim: int, scale: float = 1.0, **factory: Any) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.scale, self.times = tokens, dim, scale, form["times"]
        self.codes = _parameter(tokens, dim >> self.times, **factory)
        self.pairs = _parameter(self.times, 2, **factory)
        for step in range(self.times):
            self.register_buffer(f"order_{step}", _identity_order(dim >> step, factory))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features [..., dim] of token ids [...]."""
        features = self._features(functional.embedding(ids, self.codes))
        return features if self.scale == 1.0 else features * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., dim] to logits [..., tokens], as an output head with the same table does."""
        for step in range(self.times):
            place = torch.argsort(self.get_buffer(f"order_{step}"))
            hidden = hidden[..., place].reshape(*hidden.shape[:-1], -1, 2) @ self.pairs[step]
        return functional.linear(hidden, self.codes)

    def dense(self) -> Tensor:
        """Return the table [tokens, dim], not scaled."""
        return self._features(self.codes)

    def _features(self, codes: Tensor) -> Tensor:
        for step in reversed(range(self.times)):
            codes = (codes.unsqueeze(-1) * self.pairs[step]).flatten(-2)[..., self.get_buffer(f"order_{step}")]
        return codes


class KroneckerEmbedding(nn.Module):
    """A table [tokens, dim] as the Kronecker sum Σ_k A_k ⊗ b_k, where all tokens share the b_k of shape 1 × n2.

    `codes` [tokens, terms · n1] holds each token's rows of all A_k, `right` [terms, n2] the b_k. `order` [dim] gives
    the position of each feature in the sum; it is None where the features are not permuted. `scale` is that of
    `CompactEmbedding`.
    """

    order: Tensor | None

    def __init__(self, form: Mapping[str, Any], tokens: int, dim: int, scale: float = 1.0, **factory: Any) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.scale = tokens, dim, scale
        (n1, n2), terms = form["in"], form["terms"]
        self.codes = _parameter(tokens, terms * n1, **factory)
        self.right = _parameter(terms, n2, **factory)
        self.register_buffer("order", _identity_order(dim, factory) if form.get("permute_in") else None)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features [..., dim] of token ids [...]."""
        features = self._features(functional.embedding(ids, self.codes))
        return features if self.scale == 1.0 else features * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., dim] to logits [..., tokens], as an output head with the same table does."""
        ordered = hidden
        if self.order is not None:
            ordered = torch.empty_like(hidden).index_copy(-1, self.order.long(), hidden)
        groups = ordered.reshape(*hidden.shape[:-1], -1, self.right.shape[1])
        return functional.linear((self.right @ groups.transpose(-1, -2)).flatten(-2), self.codes)

    def dense(self) -> Tensor:
        """Return the table [tokens, dim], not scaled."""
        return self._features(self.codes)

    def _features(self, codes: Tensor) -> Tensor:
        groups = codes.reshape(*codes.shape[:-1], self.right.shape[0], -1).transpose(-1, -2)
        features: Tensor = (groups @ self.right).flatten(-2)
        return features if self.order is None else features[..., self.order]


FactoredEmbedding = CompactEmbedding | HalvedEmbedding | KroneckerEmbedding


class TiedHead(nn.Module):
    """An output head that reads the embedding's factored table and stores nothing of its own."""

    def __init__(self, embedding: FactoredEmbedding) -> None:
        super().__init__()
        # A tuple hides the table from nn.Module, so that it is registered, saved and counted once.
        self._embedding = (embedding,)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., dim] to logits [..., tokens]."""
        return self._embedding[0].logits(hidden)


def build(form: Mapping[str, Any], in_features: int, out_features: int, bias: bool, **factory: Any) -> CompactLinear:
    """Return an empty layer of the described structure for a matrix [out, in].

    `factory` holds dtype and device. Raises ValueError for an unknown kind.
    """
    match form["kind"]:
        case "dense":
            return DenseLinear(in_features, out_features, bias, **factory)
        case "low_rank":
            return LowRankLinear(in_features, out_features, form["rank"], bias, **factory)
        case "pivoted":
            return PivotedLinear(in_features, out_features, form, bias, **factory)
        case "kronecker":
            return KroneckerLinear(in_features, out_features, form, bias, **factory)
        case unknown:
            raise ValueError(f"unknown structure {unknown!r}")


def build_embedding(
    form: Mapping[str, Any], tokens: int, dim: int, scale: float = 1.0, **factory: Any
) -> FactoredEmbedding:
    """Return an empty factored embedding for a table [tokens, dim]; look-ups are multiplied by `scale`.

    `factory` holds dtype and device. Raises ValueError for a kind that embeddings do not have.
    """
    if form["kind"] == "halved":
        return HalvedEmbedding(form, tokens, dim, scale, **factory)
    if form["kind"] == "kronecker":
        return KroneckerEmbedding(form, tokens, dim, scale, **factory)
    if form["kind"] not in ("low_rank", "pivoted"):
        raise ValueError(f"an embedding cannot be {form['kind']!r}")
    return CompactEmbedding(form, tokens, dim, scale, **factory)


def replace(model: nn.Module, structures: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace every named module (nn.Linear, Conv1D or nn.Embedding) by an empty compact layer, in place.

    `structures` maps full module names to structures; shape, bias, dtype and device stay. A head of kind "tied" is
    built after the embedding that it names. Raises AttributeError for a name that the model does not have.
    """
    for name, form in sorted(structures.items(), key=lambda item: item[1]["kind"] == "tied"):
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _compact(model, model.get_submodule(name), form))


def _compact(model: nn.Module, module: nn.Module, form: Mapping[str, Any]) -> nn.Module:
    """Return the empty compact layer that replaces a module."""
    if form["kind"] == "tied":
        return TiedHead(cast("FactoredEmbedding", model.get_submodule(form["to"])))
    weight = cast("Tensor", module.weight)
    factory: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    if isinstance(module, nn.Embedding):
        return build_embedding(form, module.num_embeddings, module.embedding_dim, scale_of(module), **factory)
    # transformers' Conv1D stores [in, out].
    out_features, in_features = weight.shape if isinstance(module, nn.Linear) else weight.T.shape
    return build(form, in_features, out_features, module.bias is not None, **factory)


def scale_of(embedding: nn.Embedding) -> float:
    """Return the factor of a scaled embedding; releases of transformers before 5 keep it in a buffer only."""
    scale = getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", 1.0))
    return float(scale)


def _parameter(*shape: int, **factory: Any) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, **factory))


def _identity_order(size: int, factory: Mapping[str, Any]) -> Tensor:
    return torch.arange(size, dtype=torch.int32, device=factory.get("device"))
