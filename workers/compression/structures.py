"""The compact layers and their forward. Needs torch and nothing else: this file travels inside every factored
checkpoint.

A structure is described by a dict such as {"kind": "pivoted", "rank": 352}; `build` and `build_embedding` turn it
into a module for an out × in matrix, `replace` puts such modules into a model. Weights stand as [out, in], as in
nn.Linear. Every module offers `dense()`, the matrix it stands for, and computes the same without forming it wherever
that is cheaper.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class CompactLinear(nn.Module):
    """What all compact linear layers share: the shape, the bias, and the way from factors to output."""

    def __init__(self, in_features: int, out_features: int, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.product(inputs)
        return outputs if self.bias is None else outputs + self.bias

    def product(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out], without the bias."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The [out, in] matrix that the factors stand for."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{name}={list(value.shape)}" for name, value in self.named_parameters(recurse=False))
        return f"in_features={self.in_features}, out_features={self.out_features}, {shapes}"


class DenseLinear(CompactLinear):
    """A plain matrix, for a head that stores its own beside a factored embedding."""

    def __init__(self, in_features: int, out_features: int, bias: bool, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.weight = _parameter(out_features, in_features, **factory)

    def product(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight)

    def dense(self) -> Tensor:
        return self.weight


class LowRankLinear(CompactLinear):
    """second · first."""

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
    """Low rank with an identity in one of the factors.

    With pivot rows, which is so where out ≤ in or the pivots are folded: the pivot rows of W are `basis` [rank, in],
    the others mixing [out - rank, rank] · basis, and `order` [out] says for each output where it stands in (pivots,
    others). Folded pivots simply come first: whoever reads the outputs has been reordered. With pivot columns: they are
    `basis` [out, rank], the others basis · mixing [rank, in - rank], and `order` [in] lists the inputs, pivots first.
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
    """P_outᵀ (Σ_k A_k ⊗ B_k) P_in with `left` [terms, m1, n1] = A and `right` [terms, m2, n2] = B.

    `order_in` lists the inputs in the order of the Kronecker sum, `order_out` says for each output where it stands
    there.
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
        # Forms in which the larger factor is multiplied as it lies in memory, without a copy.
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
        forming = self.left.shape[0] * self.in_features * self.out_features
        dense = forming + tokens * self.in_features * self.out_features
        return bool(tokens * self.multiplications > dense)


class CompactEmbedding(nn.Module):
    """A factored table of tokens × features: `codes` [tokens, rank], and the map from codes to features.

    Low rank: `features` [rank, dim]. Pivoted: rank of the features are the codes themselves, the others
    codes · mixing [rank, dim - rank], and `order` [dim] says where each feature stands. `scale` multiplies what is
    looked up, as some models do, and not what `logits` returns.
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
        features = self._features(functional.embedding(ids, self.codes))
        return features if self.scale == 1.0 else features * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] to [..., tokens], as an output head with the same table: dim / rank times cheaper than the dense
        one.
        """
        if self.order is None:
            return functional.linear(functional.linear(hidden, self.mixing), self.codes)
        ordered = torch.empty_like(hidden).index_copy(-1, self.order.long(), hidden)
        pivots, others = ordered.tensor_split((self.codes.shape[1],), dim=-1)
        return functional.linear(pivots + functional.linear(others, self.mixing), self.codes)

    def dense(self) -> Tensor:
        return self._features(self.codes)

    def _features(self, codes: Tensor) -> Tensor:
        features = codes @ self.mixing
        return features if self.order is None else torch.cat((codes, features), dim=-1)[..., self.order]


class HalvedEmbedding(nn.Module):
    """A table of tokens × dim out of `codes` [tokens, dim / 2^times]: each step doubles the width by ⊗ with two
    numbers.

    `pairs` [times, 2] are those numbers, outermost step first; `order_0`, `order_1`, … say for each feature where it
    stands in the product of its step. `scale` is that of `CompactEmbedding`.
    """

    def __init__(self, form: Mapping[str, Any], tokens: int, dim: int, scale: float = 1.0, **factory: Any) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.scale, self.times = tokens, dim, scale, form["times"]
        self.codes = _parameter(tokens, dim >> self.times, **factory)
        self.pairs = _parameter(self.times, 2, **factory)
        for step in range(self.times):
            self.register_buffer(f"order_{step}", _identity_order(dim >> step, factory))

    def forward(self, ids: Tensor) -> Tensor:
        features = self._features(functional.embedding(ids, self.codes))
        return features if self.scale == 1.0 else features * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] to [..., tokens], as an output head with the same table."""
        for step in range(self.times):
            place = torch.argsort(self.get_buffer(f"order_{step}"))
            hidden = hidden[..., place].reshape(*hidden.shape[:-1], -1, 2) @ self.pairs[step]
        return functional.linear(hidden, self.codes)

    def dense(self) -> Tensor:
        return self._features(self.codes)

    def _features(self, codes: Tensor) -> Tensor:
        for step in reversed(range(self.times)):
            codes = (codes.unsqueeze(-1) * self.pairs[step]).flatten(-2)[..., self.get_buffer(f"order_{step}")]
        return codes


class KroneckerEmbedding(nn.Module):
    """A table of tokens × dim as the Kronecker sum Σ_k A_k ⊗ b_k, whose b_k of 1 × n2 all tokens share.

    `codes` [tokens, terms · n1] holds for each token its rows of all A_k, `right` [terms, n2] the b_k, and `order`
    [dim], where the form asks for it, says where each feature stands in the sum. `scale` is that of `CompactEmbedding`.
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
        features = self._features(functional.embedding(ids, self.codes))
        return features if self.scale == 1.0 else features * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] to [..., tokens], as an output head with the same table."""
        ordered = hidden
        if self.order is not None:
            ordered = torch.empty_like(hidden).index_copy(-1, self.order.long(), hidden)
        groups = ordered.reshape(*hidden.shape[:-1], -1, self.right.shape[1])
        return functional.linear((self.right @ groups.transpose(-1, -2)).flatten(-2), self.codes)

    def dense(self) -> Tensor:
        return self._features(self.codes)

    def _features(self, codes: Tensor) -> Tensor:
        groups = codes.reshape(*codes.shape[:-1], self.right.shape[0], -1).transpose(-1, -2)
        features: Tensor = (groups @ self.right).flatten(-2)
        return features if self.order is None else features[..., self.order]


FactoredEmbedding = CompactEmbedding | HalvedEmbedding | KroneckerEmbedding


class TiedHead(nn.Module):
    """An output head that reads the factored table of the embedding and stores nothing of its own."""

    def __init__(self, embedding: FactoredEmbedding) -> None:
        super().__init__()
        # In a tuple, so that the table is registered, saved and counted once.
        self._embedding = (embedding,)

    def forward(self, hidden: Tensor) -> Tensor:
        return self._embedding[0].logits(hidden)


def build(form: Mapping[str, Any], in_features: int, out_features: int, bias: bool, **factory: Any) -> CompactLinear:
    """An empty layer of the described structure. `factory` is dtype and device. Raises ValueError for an unknown
    kind.
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
    """An empty factored embedding. Raises ValueError for a kind that embeddings do not have."""
    if form["kind"] == "halved":
        return HalvedEmbedding(form, tokens, dim, scale, **factory)
    if form["kind"] == "kronecker":
        return KroneckerEmbedding(form, tokens, dim, scale, **factory)
    if form["kind"] not in ("low_rank", "pivoted"):
        raise ValueError(f"an embedding cannot be {form['kind']!r}")
    return CompactEmbedding(form, tokens, dim, scale, **factory)


def replace(model: nn.Module, structures: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts an empty compact layer in the place of every named module: nn.Linear, Conv1D or nn.Embedding.

    `structures` maps full module names to structures; shape, bias, dtype and device are those of the module replaced. A
    head of kind "tied" comes after the embedding that it names. Raises AttributeError for a name that is not there.
    """
    for name, form in sorted(structures.items(), key=lambda item: item[1]["kind"] == "tied"):
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _compact(model, model.get_submodule(name), form))


def _compact(model: nn.Module, module: nn.Module, form: Mapping[str, Any]) -> nn.Module:
    if form["kind"] == "tied":
        return TiedHead(cast("FactoredEmbedding", model.get_submodule(form["to"])))
    weight = cast("Tensor", module.weight)
    factory: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    if isinstance(module, nn.Embedding):
        return build_embedding(form, module.num_embeddings, module.embedding_dim, _scale(module), **factory)
    # transformers' Conv1D stores [in, out].
    out_features, in_features = weight.shape if isinstance(module, nn.Linear) else weight.T.shape
    return build(form, in_features, out_features, module.bias is not None, **factory)


def _scale(embedding: nn.Embedding) -> float:
    """What a scaled embedding multiplies by; releases of transformers before 5 have it in a buffer alone."""
    scale = getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", 1.0))
    return float(scale)


def _parameter(*shape: int, **factory: Any) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, **factory))


def _identity_order(size: int, factory: Mapping[str, Any]) -> Tensor:
    return torch.arange(size, dtype=torch.int32, device=factory.get("device"))
