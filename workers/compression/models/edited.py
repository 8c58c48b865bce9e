"""The compressed model as far as it is finished, computed block by block.

    model = EditedModel(original, finished_parts)
    for index in model.kept:                          # numbered as in the original
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    model.apply(part)                                 # from now on

Promise: it computes what the package of the same parts computes. A removed block passes its input through, so a loop
over all the original's blocks gives the same result.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modelpress.spec.dimensions import block_of
from modelpress.spec.inventory import Inventory
from workers.compression import structures
from workers.compression.models.skeleton import assign, empty_model
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart


class EditedModel(StreamedModel):
    """The original model with finished parts laid over it; `overlay` describes the result.

    Its inventory names blocks as the original does, but lists only the remaining target modules with their present
    shapes, and counts the parameters that are stored now. A part's tensors are looked up when they are needed: a
    mapping that reads them from a file keeps them out of memory. `original` is not changed.
    """

    def __init__(self, original: StreamedModel, parts: Iterable[CompressedPart] = ()) -> None:
        self._editions: Counter[int | None] = Counter()
        super().__init__(copy.deepcopy(original._skeleton), original.overlay.copy(), original.device, original.dtype)
        for part in parts:
            self.apply(part)

    @property
    def kept(self) -> tuple[int, ...]:
        """The original's numbers of the blocks that remain, in order."""
        return self.overlay.kept

    def edition(self, index: int) -> int:
        """Return how many parts have touched block `index` so far."""
        return self._editions[index]

    def apply(self, part: CompressedPart) -> None:
        """Lay a finished part over the model, in place.

        Raises AttributeError for a name that the model does not have, and for a second structure of one matrix.
        """
        if self.ahead is not None:
            self.ahead.drop()
        before = self.overlay.structures.keys()
        self.overlay.add(part)
        self.inventory = self.overlay.inventory
        prefix = self.inventory.block_prefix
        self._editions.update({*part.removed, *(block_of(name, prefix) for name in (*part.structures, *part.tensors))})
        forms = self.overlay.structures.items()
        added = {name: form for name, form in forms if name in part.structures or name not in before}
        structures.replace(self._skeleton, {self._own_name(name): form for name, form in added.items()})
        self._names = self._canonical_names()
        self._fit_skeleton(part)
        self._materialise_surroundings()

    def in_files(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the transformers model, by their names there, as the tensors that a part holds."""
        return {
            self.overlay.architecture.canonical(name): tensor
            for own, merged in tensors.items()
            for name, tensor in self.layout.split(own, merged).items()
        }

    def _fit_skeleton(self, part: CompressedPart) -> None:
        """Give the skeleton's parameters the shapes of what the part has laid over them."""
        for index, kept in part.experts.items():
            _set_experts(self._blocks.get_submodule(str(index)), self.overlay.original.inventory, len(kept))
        touched = {block_of(name, self.inventory.block_prefix) for name in part.tensors} | part.experts.keys()
        for name, sources in self._names.items():
            if block_of(name, self.inventory.block_prefix) not in touched:
                continue
            if part.experts or any(source in part.tensors for source in sources):
                shapes = {source: torch.empty(self.overlay.shapes[source], device="meta") for source in sources}
                _reshape(self._skeleton, name, self.layout.merged(name, shapes).shape)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Hold block `index` of the original with its edits; a removed block is an identity."""
        if index in self.overlay.removed:
            yield _Absent()
            return
        with super().block(index) as block:
            yield block

    def whole(self) -> PreTrainedModel:
        """Return the compressed transformers model, its blocks renumbered, as a copy that shares no memory.

        Raises ValueError where some blocks are narrower than others.
        """
        written = self.overlay.written_name
        model = empty_model(self.overlay.config(), self.dtype, self.device)
        forms = self.overlay.structures.items()
        structures.replace(model, {written(self._own_name(name)): form for name, form in forms})
        for name, tensor in self.read(self._names).items():
            assign(model, written(name), tensor)
        self._share_table(model)
        return model


class _Absent(nn.Module):
    """Identity that stands in for a removed block."""

    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        return hidden


def _set_experts(block: nn.Module, inventory: Inventory, count: int) -> None:
    """Let the modules of a block's mixture know that there are `count` experts now."""
    total = 0 if inventory.experts is None else inventory.experts.total
    for module in block.modules():
        for attribute in ("num_experts", "num_local_experts", "n_routed_experts"):
            if getattr(module, attribute, None) == total:
                setattr(module, attribute, count)


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter `name` of the module by a tensor, which may have another shape; dtype and device stay."""
    old = module.get_parameter(name)
    _reshape(module, name, tensor.shape)
    assign(module, name, tensor.to(old))


def _reshape(model: nn.Module, name: str, shape: torch.Size) -> None:
    """Replace the parameter `name` by an empty one of the given shape, and adjust the sizes that its layer states."""
    parent, _, leaf = name.rpartition(".")
    module = cast("Any", model.get_submodule(parent))
    old = getattr(module, leaf)
    if old.shape == shape:
        return
    empty = old.new_empty(shape)
    setattr(module, leaf, nn.Parameter(empty, requires_grad=False) if isinstance(old, nn.Parameter) else empty)
    if leaf != "weight":
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif hasattr(module, "nx"):
        # transformers' Conv1D stores [in, out].
        module.nx, module.nf = shape
