"""The compressed model as far as it is finished, block by block, with blocks left out and narrowed.

    model = EditedModel(original, finished_parts)
    for index in model.kept:                          # numbered as in the original
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    model.apply(part)                                 # from now on

Promise: it computes what the package of the same parts will compute. A removed block passes its input through, so that
whoever goes through all the original's blocks computes the same.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.compression import structures
from workers.compression.models.skeleton import assign, empty_model
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.spec.dimensions import block_of, intermediate_size, renumbered, resized_config
from workers.compression.spec.heads import stated_heads
from workers.compression.spec.inventory import Inventory, Site


class EditedModel(StreamedModel):
    """A model with the parts that are finished in the places of the original's.

    Its inventory names the blocks as the original does but lists only the sites that remain, in their present shapes,
    and counts the parameters that are stored now. The tensors of a part are looked up when they are needed: a mapping
    that reads them from a file keeps them out of memory. `original` is not changed.
    """

    def __init__(self, original: StreamedModel, parts: Iterable[CompressedPart] = ()) -> None:
        self._edited: dict[str, Mapping[str, Tensor]] = {}
        self._structures: dict[str, Mapping[str, Any]] = {}
        self._removed: set[int] = set()
        self._editions: Counter[int | None] = Counter()
        super().__init__(
            copy.deepcopy(original._skeleton),
            original._tensors,
            dict(original._stored_names),
            original.inventory,
            original.device,
            original.dtype,
        )
        for part in parts:
            self.apply(part)

    @property
    def kept(self) -> tuple[int, ...]:
        """The original's numbers of the blocks that remain, in order."""
        return tuple(index for index in range(self.inventory.blocks) if index not in self._removed)

    def edition(self, index: int) -> int:
        """How many parts have touched the block so far."""
        return self._editions[index]

    def apply(self, part: CompressedPart) -> None:
        """Puts a finished part in the place of what it was made of. Raises AttributeError for names that are not there.

        Factors come last: a site that has a structure takes no other.
        """
        self._removed.update(part.removed)
        prefix = self.inventory.block_prefix
        self._editions.update({*part.removed, *(block_of(name, prefix) for name in (*part.structures, *part.tensors))})
        for name in [name for name in self._stored_names if self._is_removed(name)]:
            del self._stored_names[name]
        self._structure({name: form for name, form in part.structures.items() if not self._is_removed(name)})
        for name, tensor in part.tensors.items():
            if self._is_removed(name):
                continue
            _reshape(self._skeleton, name, tensor.shape)
            self._stored_names.setdefault(name, name)
            self._edited[name] = part.tensors
        self._materialise_surroundings()
        self.inventory = self._present_inventory()

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """The original's block of that number with its edits; one that passes its input through where it is removed."""
        if index in self._removed:
            yield _Absent()
            return
        with super().block(index) as block:
            yield block

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of tensors, edited or the original's, by their full names; floating ones in `dtype`."""
        wanted = list(names)
        found = super().read(name for name in wanted if name not in self._edited)
        for name in wanted:
            if name in self._edited:
                tensor = self._edited[name][name]
                dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
                found[name] = tensor.to(self.device, dtype, copy=True)
        return found

    def whole(self) -> PreTrainedModel:
        """The transformers model with fewer blocks, renumbered, as a copy that shares nothing.

        Raises ValueError where the blocks are not equally wide.
        """
        prefix, kept, contents = self.inventory.block_prefix, self.kept, self.inventory
        size, heads = intermediate_size(contents), stated_heads(contents)
        config = resized_config(self._skeleton.config.to_dict(), kept, contents.blocks, size, heads)
        model = empty_model(config, self.dtype, self.device)
        forms = {renumbered(name, prefix, kept): form for name, form in self._structures.items()}
        structures.replace(model, forms)
        for name, tensor in self.read(self._stored_names).items():
            assign(model, renumbered(name, prefix, kept), tensor)
        if self.inventory.head is None and self._embedding_name not in self._structures:
            embedding = model.get_parameter(f"{self._embedding_name}.weight")
            model.get_submodule(self._head_name).register_parameter("weight", embedding)
        return model

    def _is_removed(self, name: str) -> bool:
        return block_of(name, self.inventory.block_prefix) in self._removed

    def _structure(self, forms: Mapping[str, Mapping[str, Any]]) -> None:
        """Puts empty compact layers into the skeleton; a tied head reads the factored table or keeps the whole one."""
        present = dict(forms)
        if self.inventory.head is None and self._embedding_name in present:
            form = present.setdefault(self._head_name, {"kind": "tied", "to": self._embedding_name})
            if form["kind"] == "dense":
                self._untie()
        structures.replace(self._skeleton, present)
        for name, form in present.items():
            if form["kind"] != "dense":
                self._stored_names.pop(f"{name}.weight", None)
        self._structures |= present

    def _untie(self) -> None:
        table = self.inventory.embedding
        head = dataclasses.replace(table, name=self._head_name, layout="linear")
        self.inventory = dataclasses.replace(self.inventory, head=head)
        self._stored_names[f"{head.name}.weight"] = self._stored_names[f"{table.name}.weight"]

    def _present_inventory(self) -> Inventory:
        shapes = {name: tensor.shape for name, tensor in self._skeleton.state_dict().items()}
        sites = tuple(self._present(site) for site in self.inventory.sites if not self._is_removed(site.name))
        in_blocks = [0] * self.inventory.blocks
        for name in self._stored_names:
            block = block_of(name, self.inventory.block_prefix)
            if block is not None:
                in_blocks[block] += shapes[name].numel()
        total = sum(shapes[name].numel() for name in self._stored_names)
        return dataclasses.replace(
            self.inventory, sites=sites, total_parameters=total, block_parameters=tuple(in_blocks)
        )

    def _present(self, site: Site) -> Site:
        module = cast("Any", self._skeleton.get_submodule(site.name))
        if isinstance(module, nn.Linear | structures.CompactLinear):
            sizes = module.out_features, module.in_features
        else:
            sizes = tuple(reversed(module.weight.shape))
        return dataclasses.replace(site, out_features=sizes[0], in_features=sizes[1])


class _Absent(nn.Module):
    """Stands in the place of a removed block."""

    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        return hidden


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor in the place of the parameter of that name, which may have had another shape."""
    old = module.get_parameter(name)
    _reshape(module, name, tensor.shape)
    assign(module, name, tensor.to(old))


def _reshape(model: nn.Module, name: str, shape: torch.Size) -> None:
    """Gives the parameter of that name an empty one's shape, and its layer the sizes that go with it."""
    parent, _, leaf = name.rpartition(".")
    module = cast("Any", model.get_submodule(parent))
    old = getattr(module, leaf)
    if old.shape == shape:
        return
    setattr(module, leaf, nn.Parameter(old.new_empty(shape), requires_grad=False))
    if leaf != "weight":
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    else:
        # transformers' Conv1D stores [in, out].
        module.nx, module.nf = shape
