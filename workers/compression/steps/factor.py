"""Replace matrices by compact structures, part by part. Each part is fitted to the parts that are compressed before it.

The hidden states of the original and of the compressed model pass through the blocks side by side. A matrix is fitted
to give the original's output on the input that it has in the compressed model. An output head with a matrix of its own
comes last. One block's weights are in memory; hidden states are kept in a temporary directory.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from modelpress.spec.architectures import architecture_named
from modelpress.spec.architectures.architecture import Mlp
from modelpress.spec.inventory import Site
from modelpress.spec.steps import Factor, factor_labels
from modelpress.spec.structures import Dense, Halved, Kronecker, LowRank, Pivoted, Structure
from workers.compression import structures
from workers.compression.math.fitting import LeastSquares, fit, matrix_of, problem
from workers.compression.math.kronecker import data_free
from workers.compression.math.sensitivity import Sensitivity
from workers.compression.math.symmetry import reorder_hidden_units
from workers.compression.math.tables import (
    fit_halved,
    fit_head,
    fit_kronecker_head,
    fit_kronecker_table,
    fit_table,
    table_error,
)
from workers.compression.models.protocols import BlockwiseModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.two_streams import StoredMoments, StoredStates, TwoStreams, embedded
from workers.compression.steps.work import Work
from workers.compression.structures import CompactLinear


def run(step: Factor, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield the parts of the step after the `finished` ones; see `factor`."""
    yield from factor(work.model, step, work.ids, sensitivities=work.sensitivities, finished=finished)


def factor(
    model: BlockwiseModel,
    step: Factor,
    ids: Tensor,
    *,
    sensitivities: Mapping[str, Sensitivity],
    finished: Sequence[CompressedPart] = (),
) -> Iterator[CompressedPart]:
    """Yield the parts of the step after the `finished` ones, in order; `model` stays unchanged.

    The parts that follow are the same as in a run that was not interrupted.

    Args:
        ids: calibration tokens [sequences, length].
        sensitivities: weights of each site's outputs, by site name; a site that is missing is fitted unweighted.
        finished: the first parts of the step, from an earlier run.

    Raises:
        ValueError: if the step gives the embedding or the output head a structure that it cannot take.
    """
    # Not under `torch.no_grad`: its wrapper of a generator keeps the last yielded part in memory until the next one.
    count = len(factor_labels(model.inventory))
    last = count if step.last is None else step.last
    reached = step.first + len(finished)

    def part_before(number: int) -> CompressedPart:
        """Return a finished part of this step, or an empty part for one that `model` already contains."""
        return finished[number - step.first] if number >= step.first else CompressedPart("")

    part = part_before(0) if reached > 0 else _compress_embedding(model, step, sensitivities)
    if reached == 0:
        yield part
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        streams = _begin(model, part, ids, Path(scratch), compensated=step.compensation > 0)
        del part  # a factored table is not needed again, and large
        for number in range(1, min(last, model.inventory.blocks + 1)):
            if number < reached:
                _pass_block(streams, part_before(number), number - 1)
            else:
                yield _compress_block(streams, step, sensitivities, number - 1)
        if model.inventory.head is not None and last == count:
            yield _compress_head(streams, step, sensitivities, model.inventory.head)


@torch.no_grad()
def _begin(
    model: BlockwiseModel, embedding: CompressedPart, ids: Tensor, scratch: Path, *, compensated: bool
) -> TwoStreams:
    """Return the hidden states before the first block, stored in `scratch`; the original's only if `compensated`."""
    original = StoredStates(scratch / "original", embedded(model, ids), model.device) if compensated else None
    with _compressed_embedding(model, embedding):
        compressed = StoredStates(scratch / "compressed", embedded(model, ids), model.device)
    return TwoStreams(model, original, compressed, scratch, alike=compensated and not embedding.structures)


@torch.no_grad()
def _pass_block(streams: TwoStreams, part: CompressedPart, index: int) -> None:
    """Advance both streams through a block whose part is finished."""
    with streams.model.block(index) as block:
        streams.advance_original(block, index)
        _restore(block, part, f"{streams.model.inventory.block_prefix}.{index}.")
        streams.advance_compressed(block, index, changed=bool(part.structures))


@torch.no_grad()
def _compress_block(
    streams: TwoStreams, step: Factor, sensitivities: Mapping[str, Sensitivity], index: int
) -> CompressedPart:
    """Return the part of a block with its planned sites compressed, and advance both streams through the block."""
    with streams.model.block(index) as block:
        part = _with_compact_sites(streams, step, sensitivities, block, index)
        streams.advance_compressed(block, index, changed=bool(part.structures))
        return part


def _with_compact_sites(
    streams: TwoStreams, step: Factor, sensitivities: Mapping[str, Sensitivity], block: nn.Module, index: int
) -> CompressedPart:
    """Replace the planned sites of the block by compact layers in place, and return them as a part.

    The original stream moves on to the block's output.
    """
    whole = f"{streams.model.inventory.block_prefix}.{index}"
    planned = {name.removeprefix(f"{whole}."): name for name in step.structures if name.startswith(f"{whole}.")}
    moments = streams.observe(block, index, list(planned))
    weights = {name: sensitivities[site].outputs for name, site in planned.items() if site in sensitivities}
    folded = {name for name, site in planned.items() if _is_folded(step.structures[site])}
    mlp = architecture_named(streams.model.inventory.model_type).mlp
    changed, errors = dict(planned), {}
    # The site that sets the order of the MLP's hidden units goes first, since the others follow it.
    for name in sorted(planned, key=lambda name: name not in folded):
        site = planned[name]
        errors[site] = _compress_site(
            block,
            name,
            step,
            step.structures[site],
            problem(
                matrix_of(block.get_submodule(name)),
                moments.take(name),
                compensation=step.compensation,
                outputs=weights.get(name),
                spend=True,
            ),
            lambda order: _reorder(block, mlp, order, moments, weights),
        )
    if folded:
        changed |= {name: f"{whole}.{name}" for name in mlp.sites}
    forms = {site: step.structures[site].to_dict() for site in planned.values()}
    return CompressedPart(whole, forms, _tensors_of(block, changed), errors)


def _compress_site(
    block: nn.Module,
    name: str,
    step: Factor,
    structure: Structure,
    target: LeastSquares,
    reorder: Callable[[Tensor], None],
) -> float:
    """Replace a site by a compact layer in place, and return its relative error.

    `reorder` is called with the order [out] of the site's outputs if the structure changes it.
    """
    factors = data_free(structure, target.target) if step.data_free else fit(structure, target)
    if _is_folded(structure):
        order = factors.pop("order")
        target = target.reordered(order)
        reorder(order)
    compact = _replace(block, name, structure, factors)
    return math.sqrt(target.error(compact.dense()))


def _is_folded(structure: Structure) -> bool:
    """Return whether the structure's permutation of outputs is folded into the modules that read them."""
    return isinstance(structure, Pivoted | Kronecker) and structure.folded


def _reorder(block: nn.Module, mlp: Mlp, order: Tensor, moments: StoredMoments, weights: dict[str, Tensor]) -> None:
    """Permute the MLP's hidden units in place, and with them the moments and output weights of its sites."""
    reorder_hidden_units(block, mlp, order)
    weights.update({name: weights[name][order.to(weights[name].device)] for name in mlp.entering if name in weights})
    if mlp.leaving in moments:
        moments.reorder(mlp.leaving, order)


def _tensors_of(block: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of some modules by their full names; `names` maps a module's name in the block to its full
    name."""
    return {
        f"{full}.{kind}": tensor
        for name, full in names.items()
        for kind, tensor in block.get_submodule(name).state_dict().items()
    }


def _replace(block: nn.Module, name: str, structure: Structure, factors: Mapping[str, Tensor]) -> CompactLinear:
    """Replace a linear layer by a compact one with these factors and the same bias, in place, and return it."""
    bias = getattr(block.get_submodule(name), "bias", None)
    structures.replace(block, {name: structure.to_dict()})
    compact = cast("CompactLinear", block.get_submodule(name))
    _load(compact, factors if bias is None else {**factors, "bias": bias})
    return compact


def _load(module: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Load `factors` in the dtypes of the module's own tensors."""
    state = module.state_dict()
    module.load_state_dict({name: value.to(state[name].dtype).contiguous() for name, value in factors.items()})


def _restore(block: nn.Module, part: CompressedPart, prefix: str) -> None:
    """Apply a finished part to the block in place; `prefix` is the block's full name with a dot."""
    structures.replace(block, {name.removeprefix(prefix): form for name, form in part.structures.items()})
    block.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in part.tensors.items()}, strict=False)


@torch.no_grad()
def _compress_embedding(
    model: BlockwiseModel, step: Factor, sensitivities: Mapping[str, Sensitivity]
) -> CompressedPart:
    """Return the factored embedding, or an empty part if the step leaves the embedding whole."""
    name = model.inventory.embedding.name
    structure = step.structures.get(name)
    if structure is None:
        return CompressedPart(name)
    if not isinstance(structure, LowRank | Pivoted | Kronecker | Halved):
        raise ValueError(f"{name} cannot be {structure}: an embedding is low rank, pivoted, Kronecker, halved or whole")
    table = model.read([f"{name}.weight"])[f"{name}.weight"]
    weights, curvature = _table_weights(table, sensitivities.get(name))
    if isinstance(structure, Halved):
        factors = fit_halved(structure, table.float())
    elif isinstance(structure, Kronecker):
        factors = fit_kronecker_table(structure, table, weights, curvature)
    else:
        factors = fit_table(structure, table, weights, curvature)
    form = structure.to_dict()
    embedding = structures.build_embedding(form, *table.shape, dtype=table.dtype, device=table.device)
    _load(embedding, factors)
    error = math.sqrt(table_error(table, embedding.dense(), weights, curvature))
    tensors = {f"{name}.{key}": tensor for key, tensor in embedding.state_dict().items()}
    forms, errors = {name: form}, {name: error}
    head = architecture_named(model.inventory.model_type).head
    if model.inventory.head is None and isinstance(step.structures.get(head), Dense):
        forms[head], errors[head] = Dense().to_dict(), 0.0
    return CompressedPart(name, forms, tensors, errors)


def _table_weights(table: Tensor, sensitivity: Sensitivity | None) -> tuple[Tensor, Tensor]:
    """Return the measured weights [V] of a table's rows and the weights [E, E] of its columns; ones if unmeasured."""
    if sensitivity is None or sensitivity.inputs is None:
        return table.new_ones(len(table), dtype=torch.float64), torch.eye(table.shape[1], device=table.device)
    return sensitivity.outputs.to(table.device), sensitivity.inputs.to(table.device)


@torch.no_grad()
def _compress_head(
    streams: TwoStreams, step: Factor, sensitivities: Mapping[str, Sensitivity], site: Site
) -> CompressedPart:
    """Return the output head's compact layer, or an empty part if the step leaves the head whole."""
    structure = step.structures.get(site.name)
    if structure is None:
        return CompressedPart(site.name)
    if not isinstance(structure, LowRank | Pivoted | Kronecker):
        raise ValueError(f"{site.name} cannot be {structure}: an output head is low rank, pivoted, Kronecker or whole")
    stored = streams.model.read(f"{site.name}.{key}" for key in ("weight", "bias")[: 1 + site.bias])
    table = stored[f"{site.name}.weight"]
    bias = {"bias": stored[f"{site.name}.bias"]} if site.bias else {}
    known = sensitivities.get(site.name)
    weights = table.new_ones(len(table), dtype=torch.float64) if known is None else known.outputs.to(table.device)
    moments = streams.observe_head()
    second = moments.inputs / moments.tokens
    moved = problem(torch.eye(site.in_features, device=table.device), moments, compensation=step.compensation).target
    form = structure.to_dict()
    compact = structures.build(
        form, site.in_features, site.out_features, site.bias, dtype=table.dtype, device=table.device
    )
    if isinstance(structure, Kronecker):
        factors = fit_kronecker_head(structure, table, weights, second, moved)
    else:
        factors = fit_head(structure, table, weights, second, moved)
    _load(compact, factors | bias)
    error = math.sqrt(table_error(table, compact.dense(), weights, second, moved))
    tensors = {f"{site.name}.{key}": tensor for key, tensor in compact.state_dict().items()}
    return CompressedPart(site.name, {site.name: form}, tensors, {site.name: error})


def _compressed_embedding(model: BlockwiseModel, part: CompressedPart) -> AbstractContextManager[None]:
    """Use the part's embedding in the model while the context lasts; do nothing if the embedding stays whole."""
    old = model.inventory.embedding
    name = old.name
    form = part.structures.get(name)
    if form is None:
        return nullcontext()
    dtype = part.tensors[f"{name}.codes"].dtype
    scale = getattr(model.embedding_module, "scalar_embed_scale", 1.0)
    embedding = structures.build_embedding(form, old.out_features, old.in_features, scale, dtype=dtype)
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in part.tensors.items()}
    embedding.load_state_dict(own, assign=True)
    return model.with_embedding(embedding)
