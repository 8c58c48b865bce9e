"""Compressing a model part by part, each fitted to what the parts before it have become.

Two streams of hidden states flow through the blocks: the original's and the compressed model's. A site is fitted to the
original's output on the input that the compressed model has there after the blocks before it; an output head with a
matrix of its own comes last. Only one block's weights are in memory; the two streams wait in a
temporary directory.

`compress` yields finished parts and keeps no record of them: whoever asks writes them down, and resumes with `start`.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.compression import structures
from workers.compression.accounting import Dense, Halved, LowRank, Pivoted, Plan, Structure, to_dict
from workers.compression.architectures import ARCHITECTURES, Inventory, Mlp, Site
from workers.compression.fitting import (
    Moments,
    Problem,
    fit,
    matrix_of,
    problem,
)
from workers.compression.kronecker import data_free
from workers.compression.sensitivity import Sensitivity
from workers.compression.structures import CompactLinear
from workers.compression.symmetry import reorder_hidden_units
from workers.compression.tables import fit_halved, fit_head, fit_table, table_error

BATCH = 2
"""Sequences that pass through a block at a time."""


class BlockwiseModel(Protocol):
    """What this module needs of a model; `models.StreamedModel` is one."""

    inventory: Inventory

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids [batch, length] to the first block's input [batch, length, width]."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """A block with its weights, for as long as the context lasts."""

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """The block's output for its input, with the position arguments of its index."""

    def head_inputs(self, hidden: Tensor) -> Tensor:
        """The last block's output [batch, length, width] to what enters the output head."""

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of the checkpoint by name."""

    def replace(self, name: str, module: nn.Module) -> None:
        """Puts a module in the place of the embedding."""

    @property
    def embedding_module(self) -> nn.Module:
        """The embedding itself."""


@dataclass(frozen=True)
class CompressedPart:
    """A finished piece of the compressed model.

    The model's tensors are the original's, less the `.weight` of every site in `structures`, plus `tensors`. `errors`
    is the relative norm of the difference between each site's output and its target's. The blocks in `removed` are left
    out from here on. Blocks are always numbered as in the original; of a tensor in several parts the last one counts. A
    tied head whose structure is dense keeps the original's table for itself. `scores` are those by which the removed
    blocks were chosen, by the number of the block.
    """

    index: int
    name: str
    structures: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float]
    removed: tuple[int, ...] = ()
    scores: Mapping[int, float] = field(default_factory=dict)


def part_count(inventory: Inventory) -> int:
    """How many parts `compress` yields: the embedding, the blocks, and the head where it has a matrix of its own."""
    return 1 + inventory.blocks + (inventory.head is not None)


@torch.no_grad()
def compress(
    model: BlockwiseModel,
    plan: Plan,
    ids: Tensor,
    *,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    start: int = 0,
    finished: Callable[[int], CompressedPart] | None = None,
) -> Iterator[CompressedPart]:
    """Yields the compressed parts from index `start` on, in order. A factored embedding stays in `model`.

    `ids` are calibration tokens [sequences, length]; `sensitivities` weigh the outputs of each site, and are needed for
    a factored embedding. When resuming, `finished` gives the parts before `start`; both streams are led through them
    again, and what follows is the same as without the interruption. Raises ValueError for a `start` above 0 without
    `finished`.
    """
    if start and finished is None:
        raise ValueError("to resume, say where the finished parts are")
    known = sensitivities or {}
    part = finished(0) if start and finished else _compress_embedding(model, plan, known)
    if not start:
        yield part
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        streams = _Streams.begin(model, part, ids, Path(scratch), compensated=plan.compensation > 0)
        for index in range(model.inventory.blocks):
            if index + 1 < start and finished is not None:
                _pass_block(streams, finished(index + 1), index)
            else:
                yield _compress_block(streams, plan, known, index)
        if model.inventory.head is not None and start < part_count(model.inventory):
            yield _compress_head(streams, plan, known, model.inventory.head)


def _embedded(model: BlockwiseModel, ids: Tensor) -> Iterator[Tensor]:
    return (model.hidden(batch) for batch in torch.split(ids, BATCH))


class _Stream:
    """Hidden states in batches, each in a file of its own: only the one at work is in memory."""

    def __init__(self, directory: Path, batches: Iterable[Tensor]) -> None:
        directory.mkdir()
        self._files: list[Path] = []
        for hidden in batches:
            self._files.append(directory / str(len(self._files)))
            torch.save(hidden, self._files[-1])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, batch: int) -> Tensor:
        hidden: Tensor = torch.load(self._files[batch])
        return hidden

    def advance(self, batch: int, hidden: Tensor) -> None:
        torch.save(hidden, self._files[batch])


class _Streams:
    """The hidden states of both models before the current block.

    There is no `original` where nothing is compensated for. As long as the streams are `alike`, before the first block
    that was compressed, one of them is computed.
    """

    def __init__(self, model: BlockwiseModel, original: _Stream | None, compressed: _Stream, *, alike: bool) -> None:
        self.model = model
        self.original, self.compressed, self.alike = original, compressed, alike

    @classmethod
    def begin(
        cls, model: BlockwiseModel, embedding: CompressedPart, ids: Tensor, scratch: Path, *, compensated: bool
    ) -> "_Streams":
        """The streams before the first block, kept in `scratch`; the compressed embedding is put into the model."""
        original = _Stream(scratch / "original", _embedded(model, ids)) if compensated else None
        _put_embedding(model, embedding)
        compressed = _Stream(scratch / "compressed", _embedded(model, ids))
        return cls(model, original, compressed, alike=compensated and not embedding.structures)

    def advance_original(self, block: nn.Module, index: int) -> None:
        if self.original is not None:
            self._advance(self.original, block, index)

    def advance_compressed(self, block: nn.Module, index: int) -> None:
        self._advance(self.compressed, block, index)
        self.alike = False

    def _advance(self, stream: _Stream, block: nn.Module, index: int) -> None:
        for batch in range(len(stream)):
            stream.advance(batch, self.model.run(block, index, stream[batch]))

    def observe(self, block: nn.Module, index: int, names: Sequence[str]) -> dict[str, Moments]:
        """The moments of the named sites while the block is still whole; those with the same input share theirs.

        The original stream moves on to the block's output.
        """
        moments: dict[str, Moments] = {}
        for batch in range(len(self.compressed)):
            before: dict[str, Tensor] | None = None
            if self.original is not None:
                output, before = self._inputs(block, index, self.original[batch], names)
                self.original.advance(batch, output)
            if before is not None and self.alike:
                after, before = before, None
            else:
                after = self._inputs(block, index, self.compressed[batch], names)[1]
            leaders: dict[int, str] = {}
            for name, inputs in after.items():
                leader = leaders.setdefault(id(inputs), name)
                if name not in moments:
                    moments[name] = Moments.empty(inputs.shape[-1]) if leader == name else moments[leader]
                if leader == name:
                    moments[name].add(inputs, None if before is None else before[name])
        return moments

    def observe_head(self) -> Moments:
        """The moments of what enters the output head, after the last block."""
        moments = Moments.empty(self.model.inventory.embedding.in_features)
        for batch in range(len(self.compressed)):
            before = None if self.original is None else self.model.head_inputs(self.original[batch])
            moments.add(self.model.head_inputs(self.compressed[batch]), before)
        return moments

    def _inputs(
        self, block: nn.Module, index: int, hidden: Tensor, names: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The block's output, and what entered each of the named sites on the way."""
        entered: dict[str, Tensor] = {}

        def watch(name: str) -> RemovableHandle:
            return block.get_submodule(name).register_forward_pre_hook(
                lambda _, arguments: entered.update({name: arguments[0]})
            )

        handles = [watch(name) for name in names]
        output = self.model.run(block, index, hidden)
        for handle in handles:
            handle.remove()
        return output, entered


def _pass_block(streams: _Streams, part: CompressedPart, index: int) -> None:
    """Leads both streams through a block that is finished."""
    with streams.model.block(index) as block:
        streams.advance_original(block, index)
        _restore(block, part, f"{streams.model.inventory.block_prefix}.{index}.")
        streams.advance_compressed(block, index)


def _compress_block(
    streams: _Streams, plan: Plan, sensitivities: Mapping[str, Sensitivity], index: int
) -> CompressedPart:
    """The block with compact layers in the place of its planned sites; both streams have passed it then."""
    with streams.model.block(index) as block:
        part = _with_compact_sites(streams, plan, sensitivities, block, index)
        streams.advance_compressed(block, index)
        return part


def _with_compact_sites(
    streams: _Streams, plan: Plan, sensitivities: Mapping[str, Sensitivity], block: nn.Module, index: int
) -> CompressedPart:
    """Puts compact layers in the place of the planned sites of the block."""
    whole = f"{streams.model.inventory.block_prefix}.{index}"
    planned = {name.removeprefix(f"{whole}."): name for name in plan.structures if name.startswith(f"{whole}.")}
    moments = streams.observe(block, index, list(planned))
    weights = {name: sensitivities[site].outputs for name, site in planned.items() if site in sensitivities}
    folded = {name for name, site in planned.items() if _is_folded(plan.structures[site])}
    mlp = ARCHITECTURES[streams.model.inventory.model_type].mlp
    changed, errors = dict(planned), {}
    # The site that sets the order of the MLP's hidden units goes first, since the others follow it; the widest inputs
    # come last, when the moments of the others are gone.
    for name in sorted(planned, key=lambda name: (name not in folded, len(moments[name].inputs))):
        site = planned[name]
        errors[site] = _compress_site(
            block,
            name,
            plan,
            plan.structures[site],
            _problem(block, name, moments, plan.compensation, weights.get(name)),
            lambda order: _reorder(block, mlp, order, moments, weights),
        )
    if folded:
        changed |= {name: f"{whole}.{name}" for name in mlp.sites}
    forms = {site: to_dict(plan.structures[site]) for site in planned.values()}
    return CompressedPart(index + 1, whole, forms, _tensors_of(block, changed), errors)


def _compress_site(
    block: nn.Module,
    name: str,
    plan: Plan,
    structure: Structure,
    target: Problem,
    reorder: Callable[[Tensor], None],
) -> float:
    """Puts a compact layer in the place of a site, and returns its relative error.

    `reorder` is told of the order of the site's outputs where its structure sets one.
    """
    factors = data_free(structure, target.target) if plan.data_free else fit(structure, target)
    if _is_folded(structure):
        order = factors.pop("order")
        target = target.reordered(order)
        reorder(order)
    compact = _replace(block, name, structure, factors)
    return math.sqrt(target.error(compact.dense().cpu()))


def _is_folded(structure: Structure) -> bool:
    return isinstance(structure, Pivoted) and structure.folded


def _reorder(
    block: nn.Module, mlp: Mlp, order: Tensor, moments: Mapping[str, Moments], weights: dict[str, Tensor]
) -> None:
    """Puts the MLP's hidden units into an order, and what is known of them."""
    reorder_hidden_units(block, mlp, order)
    weights.update({name: weights[name][order] for name in mlp.entering if name in weights})
    if mlp.leaving in moments:
        moments[mlp.leaving].reorder(order)


def _tensors_of(block: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of some modules, by name in the block, named as in the model."""
    return {
        f"{full}.{kind}": tensor
        for name, full in names.items()
        for kind, tensor in block.get_submodule(name).state_dict().items()
    }


def _problem(
    block: nn.Module, name: str, moments: dict[str, Moments], compensation: float, outputs: Tensor | None
) -> Problem:
    """The fit of a site; its moments leave the dictionary, and are given up with the last site that shares them."""
    own = moments.pop(name)
    spend = all(own is not other for other in moments.values())
    weight = matrix_of(block.get_submodule(name))
    return problem(weight, own, compensation=compensation, outputs=outputs, spend=spend)


def _replace(block: nn.Module, name: str, structure: Structure, factors: Mapping[str, Tensor]) -> CompactLinear:
    """The compact layer that now stands in the place of the named one, with its bias."""
    bias = getattr(block.get_submodule(name), "bias", None)
    structures.replace(block, {name: to_dict(structure)})
    compact = cast("CompactLinear", block.get_submodule(name))
    _load(compact, factors if bias is None else {**factors, "bias": bias})
    return compact


def _load(module: nn.Module, factors: Mapping[str, Tensor]) -> None:
    state = module.state_dict()
    module.load_state_dict({name: value.to(state[name].dtype).contiguous() for name, value in factors.items()})


def _restore(block: nn.Module, part: CompressedPart, prefix: str) -> None:
    """Puts a finished part into the block."""
    structures.replace(block, {name.removeprefix(prefix): form for name, form in part.structures.items()})
    block.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in part.tensors.items()}, strict=False)


def _compress_embedding(model: BlockwiseModel, plan: Plan, sensitivities: Mapping[str, Sensitivity]) -> CompressedPart:
    """The factored table, or a part without content where the plan leaves the embedding whole."""
    name = model.inventory.embedding.name
    structure = plan.structures.get(name)
    if structure is None:
        return CompressedPart(0, name, {}, {}, {})
    if not isinstance(structure, LowRank | Pivoted | Halved):
        raise ValueError(f"{name} cannot be {structure}: an embedding is low rank, pivoted, halved or whole")
    table = model.read([f"{name}.weight"])[f"{name}.weight"].cpu()
    weights, curvature = _table_weights(table, sensitivities.get(name))
    if isinstance(structure, Halved):
        factors = fit_halved(structure, table.float())
    else:
        factors = fit_table(structure, table, weights, curvature)
    form = to_dict(structure)
    embedding = structures.build_embedding(form, *table.shape, dtype=table.dtype)
    _load(embedding, factors)
    error = math.sqrt(table_error(table, embedding.dense(), weights, curvature))
    tensors = {f"{name}.{key}": tensor for key, tensor in embedding.state_dict().items()}
    forms, errors = {name: form}, {name: error}
    head = ARCHITECTURES[model.inventory.model_type].head
    if model.inventory.head is None and isinstance(plan.structures.get(head), Dense):
        forms[head], errors[head] = to_dict(Dense()), 0.0
    return CompressedPart(0, name, forms, tensors, errors)


def _table_weights(table: Tensor, sensitivity: Sensitivity | None) -> tuple[Tensor, Tensor]:
    """The weights of rows and columns that were measured, or the plain norm where none were."""
    if sensitivity is None or sensitivity.inputs is None:
        return torch.ones(len(table), dtype=torch.float64), torch.eye(table.shape[1])
    return sensitivity.outputs, sensitivity.inputs


def _compress_head(
    streams: _Streams, plan: Plan, sensitivities: Mapping[str, Sensitivity], site: Site
) -> CompressedPart:
    """The output head's compact layer, or a part without content where the plan leaves the head whole."""
    index = part_count(streams.model.inventory) - 1
    structure = plan.structures.get(site.name)
    if structure is None:
        return CompressedPart(index, site.name, {}, {}, {})
    if not isinstance(structure, LowRank | Pivoted):
        raise ValueError(f"{site.name} cannot be {structure}: an output head is low rank, pivoted or whole")
    stored = streams.model.read(f"{site.name}.{key}" for key in ("weight", "bias")[: 1 + site.bias])
    table = stored[f"{site.name}.weight"].cpu()
    bias = {"bias": stored[f"{site.name}.bias"]} if site.bias else {}
    weights = sensitivities[site.name].outputs if site.name in sensitivities else torch.ones(len(table)).double()
    moments = streams.observe_head()
    second = moments.inputs / moments.tokens
    moved = problem(torch.eye(site.in_features), moments, compensation=plan.compensation).target
    form = to_dict(structure)
    compact = structures.build(form, site.in_features, site.out_features, site.bias, dtype=table.dtype)
    _load(compact, fit_head(structure, table, weights, second, moved) | bias)
    error = math.sqrt(table_error(table, compact.dense(), weights, second, moved))
    tensors = {f"{site.name}.{key}": tensor for key, tensor in compact.state_dict().items()}
    return CompressedPart(index, site.name, {site.name: form}, tensors, {site.name: error})


def _put_embedding(model: BlockwiseModel, part: CompressedPart) -> None:
    old = model.inventory.embedding
    name = old.name
    if form := part.structures.get(name):
        dtype = part.tensors[f"{name}.codes"].dtype
        scale = getattr(model.embedding_module, "scalar_embed_scale", 1.0)
        embedding = structures.build_embedding(form, old.out_features, old.in_features, scale, dtype=dtype)
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in part.tensors.items()}
        embedding.load_state_dict(own, assign=True)
        model.replace(name, embedding)
