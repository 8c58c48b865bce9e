"""Compressing a model part by part, each fitted to what the parts before it have become.

Two streams of hidden states flow through the blocks: the original's and the compressed model's. A site is fitted to the
original's output on the compressed model's input, in the order in which the block runs its sites, so that the output
projection sees the compressed attention. Only one block's weights, its compact copy and the two streams are in memory.

`compress` yields finished parts and keeps no record of them: whoever asks writes them down, and resumes with `start`.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from workers.compression import structures
from workers.compression.accounting import Plan, Structure, to_dict
from workers.compression.architectures import Inventory
from workers.compression.fitting import Moments, fit, problem

DAMPING = 0.02
"""Ridge on the input moments, as part of their mean diagonal."""

BATCH = 4
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


@dataclass(frozen=True)
class CompressedPart:
    """A finished piece of the compressed model.

    The model's tensors are the original's, less the `.weight` of every site in `structures`, plus `tensors`. `errors`
    is the relative norm of the difference between each site's output and its target's.
    """

    index: int
    name: str
    structures: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float]


def part_count(inventory: Inventory) -> int:
    """How many parts `compress` yields."""
    return inventory.blocks


@torch.no_grad()
def compress(
    model: BlockwiseModel,
    plan: Plan,
    ids: Tensor,
    *,
    start: int = 0,
    finished: Callable[[int], CompressedPart] | None = None,
) -> Iterator[CompressedPart]:
    """Yields the compressed parts from index `start` on, in order.

    `ids` are calibration tokens [sequences, length]. When resuming, `finished` gives the parts before `start`; both
    streams are led through them again, and what follows is the same as without the interruption. Raises ValueError for
    a `start` above 0 without `finished`.
    """
    if start and finished is None:
        raise ValueError("to resume, say where the finished parts are")
    streams = _Streams(model, ids)
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            if index < start and finished is not None:
                compact = _restored(model, block, finished(index))
                streams.advance(block, compact, index)
                continue
            compact = copy.deepcopy(block)
            errors = _compress_block(streams, plan, block, compact, index)
            streams.advance(block, compact, index)
            part = _part(model.inventory, plan, compact, index, errors)
        yield part


class _Streams:
    """The hidden states of both models before the current block, in batches."""

    def __init__(self, model: BlockwiseModel, ids: Tensor) -> None:
        self.model = model
        self.original = [model.hidden(batch) for batch in torch.split(ids, BATCH)]
        self.compressed = list(self.original)

    def advance(self, block: nn.Module, compact: nn.Module, index: int) -> None:
        for batch in range(len(self.original)):
            self.original[batch] = self.model.run(block, index, self.original[batch])
            self.compressed[batch] = self.model.run(compact, index, self.compressed[batch])

    def inputs(self, block: nn.Module, compact: nn.Module, index: int, site: str) -> Iterator[tuple[Tensor, Tensor]]:
        """What reaches the site in the original and in the compressed block, batch by batch."""
        for original, compressed in zip(self.original, self.compressed, strict=True):
            same = original is compressed and block is compact
            before = self._reaching(block, index, original, site)
            yield before, before if same else self._reaching(compact, index, compressed, site)

    def groups(self, block: nn.Module, index: int, sites: Sequence[str]) -> list[list[str]]:
        """The sites in the order in which the block runs them, those with the same input together."""
        seen: list[tuple[Tensor, list[str]]] = []

        def note(name: str, inputs: Tensor) -> None:
            if seen and seen[-1][0] is inputs:
                seen[-1][1].append(name)
            else:
                seen.append((inputs, [name]))

        handles = [_watch(block.get_submodule(name), name, note) for name in sites]
        self.model.run(block, index, self.original[0][:1, :2])
        for handle in handles:
            handle.remove()
        return [names for _, names in seen]

    def _reaching(self, block: nn.Module, index: int, hidden: Tensor, site: str) -> Tensor:
        def stop(name: str, inputs: Tensor) -> None:
            raise _Reached(inputs)

        handle = _watch(block.get_submodule(site), site, stop)
        try:
            self.model.run(block, index, hidden)
        except _Reached as reached:
            return reached.inputs
        finally:
            handle.remove()
        raise ValueError(f"block {index} never runs {site}")


class _Reached(Exception):  # noqa: N818
    """Carries a site's inputs out of a block whose rest need not run."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs


def _watch(module: nn.Module, name: str, note: Callable[[str, Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda _, arguments: note(name, arguments[0]))


def _compress_block(
    streams: _Streams, plan: Plan, block: nn.Module, compact: nn.Module, index: int
) -> dict[str, float]:
    """Replaces the planned sites of `compact` one group after the other; the errors by full site name."""
    prefix = f"{streams.model.inventory.block_prefix}.{index}."
    planned = {name.removeprefix(prefix): form for name, form in plan.structures.items() if name.startswith(prefix)}
    errors = {}
    for group in streams.groups(block, index, list(planned)):
        features = _matrix(block.get_submodule(group[0])).shape[1]
        moments = Moments.empty(features)
        for original, compressed in streams.inputs(block, compact, index, group[0]):
            moments.add(original, compressed)
        for name in group:
            errors[prefix + name] = _replace_site(compact, name, planned[name], moments, plan.compensation)
    return errors


def _replace_site(compact: nn.Module, name: str, structure: Structure, moments: Moments, compensation: float) -> float:
    module = compact.get_submodule(name)
    site = problem(_matrix(module), moments, DAMPING, compensation)
    factors = fit(structure, site)
    bias = getattr(module, "bias", None)
    structures.replace(compact, {name: to_dict(structure)})
    replaced = cast("structures.CompactLinear", compact.get_submodule(name))
    _load(replaced, factors if bias is None else {**factors, "bias": bias})
    return math.sqrt(site.error(replaced.dense()))


def _matrix(module: nn.Module) -> Tensor:
    """The weight as [out, in], whichever way round the module stores it."""
    weight = cast("Tensor", module.weight)
    return weight if isinstance(module, nn.Linear) else weight.T


def _load(module: nn.Module, factors: Mapping[str, Tensor]) -> None:
    state = module.state_dict()
    module.load_state_dict({name: value.to(state[name].dtype).contiguous() for name, value in factors.items()})


def _restored(model: BlockwiseModel, block: nn.Module, part: CompressedPart) -> nn.Module:
    """A copy of the block with a finished part in place."""
    prefix = f"{model.inventory.block_prefix}.{part.index}."
    compact = copy.deepcopy(block)
    structures.replace(compact, {name.removeprefix(prefix): form for name, form in part.structures.items()})
    compact.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in part.tensors.items()}, strict=False)
    return compact


def _part(
    inventory: Inventory, plan: Plan, compact: nn.Module, index: int, errors: Mapping[str, float]
) -> CompressedPart:
    name = f"{inventory.block_prefix}.{index}"
    forms = {site: to_dict(plan.structures[site]) for site in errors}
    tensors = {
        f"{site}.{key}": tensor.clone()
        for site in errors
        for key, tensor in compact.get_submodule(site.removeprefix(f"{name}.")).state_dict().items()
    }
    return CompressedPart(index, name, forms, tensors, errors)
