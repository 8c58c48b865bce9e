"""The compressed model as a value: finished parts laid over the checkpoint from which they were made.

    overlay = Overlay.open(directory, parts)
    overlay.kept, overlay.structures, overlay.shapes      # named and numbered as in the original
    overlay.inventory                                     # what remains, with its present sizes
    overlay.config(), overlay.written_name(name)          # as stated and named in a package
    for name in overlay.tensor_names():
        overlay.tensor(name)                              # one tensor at a time is read

The rules that hold for every compressed model stand here and nowhere else:

- Of several parts that hold a tensor, the last one counts.
- A tensor that is stored in a code stands for its decoded weights.
- A factored matrix replaces its `.weight`.
- Tensors of a removed block or expert are gone; a tensor that holds all experts loses the rows of those that go.
- An output head that shares the embedding's table reads the factors once the table is factored, unless its own
  structure is "dense": then it keeps the original's table for itself.

The edited model, every format and the report ask the overlay.

Promise: at most one tensor at a time is in memory, as far as the parts read theirs from files.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING

from modelpress.spec.architectures import architecture_of
from modelpress.spec.config import is_tied, read_config
from modelpress.spec.dimensions import (
    block_of,
    intermediate_size,
    intermediate_sizes,
    original_name,
    renumbered,
    resized_config,
)
from modelpress.spec.headers import StoredTensor, stored_tensors
from modelpress.spec.heads import stated_heads
from modelpress.spec.inventory import ExpertCounts, Inventory, Site, inventory, weights
from modelpress.spec.kept_experts import KeptExperts
from workers.compression.encoded import DecodedTensors, Encoded

Form = Mapping[str, Any]
"""JSON form of a structure, such as {"kind": "low_rank", "rank": 8}."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The torch dtype for each dtype name in a safetensors header."""


class Part(Protocol):
    """A finished piece of the compressed model; `parts.CompressedPart` is one."""

    @property
    def structures(self) -> Mapping[str, Form]:
        """Full module name → JSON form of the structure that replaces the module."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Full tensor name → tensor, which may be read from a file at each look-up."""

    @property
    def removed(self) -> tuple[int, ...]:
        """The blocks that are left out from this part on."""

    @property
    def encodings(self) -> Mapping[str, str]:
        """Full tensor name → name of the code in which the tensor is stored."""

    @property
    def experts(self) -> Mapping[int, tuple[int, ...]]:
        """Block → the experts that stay in its mixture from this part on."""


@dataclass(frozen=True)
class Original:
    """A checkpoint before any part is laid over it.

    `names` maps the canonical name of each weight to its name in the files, and `tensors` a name in the files to the
    tensor's location. `structures` is filled where the checkpoint is itself a factored package.
    """

    directory: Path
    config: Mapping[str, Any]
    inventory: Inventory
    names: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]
    structures: Mapping[str, Form] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Original":
        """Read the config and headers of an ordinary checkpoint. Raises UnsupportedArchitecture and MalformedModel."""
        config = {name: value for name, value in read_config(directory).items() if name != "auto_map"}
        tensors = stored_tensors(directory)
        contents = inventory(config, {name: tensor.shape for name, tensor in tensors.items()})
        return cls(directory, config, contents, weights(config, tensors), tensors)

    def tensor(self, stored_name: str) -> Tensor:
        """Read one tensor by its name in the files, in its stored dtype."""
        # Open anew each time: a mapping that stays open keeps every page that was read resident.
        with safe_open(self.tensors[stored_name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored_name)
            return tensor


class Overlay:
    """Parts laid over an original checkpoint; `add` lays one more.

    Block names and numbers are the original's throughout, except where a name says `written`.
    """

    def __init__(self, original: Original, parts: Iterable[Part] = ()) -> None:
        self.original = original
        self.architecture = architecture_of(original.config)
        self.removed: set[int] = set()
        self.experts = KeptExperts(self.architecture)
        self._forms: dict[str, Form] = dict(original.structures)
        self._sources = dict(original.names)
        self._shapes = {name: original.tensors[stored].shape for name, stored in original.names.items()}
        self._held: list[DecodedTensors] = []
        self._holders: dict[str, int] = {}
        self._matrices: dict[str, tuple[int, ...]] = {}
        self._codes: dict[str, str] = {}
        for part in parts:
            self._lay(part)
        self.inventory = self._present_inventory() if self._held else original.inventory

    @classmethod
    def open(cls, directory: Path, parts: Iterable[Part] = ()) -> "Overlay":
        """Lay `parts` over the ordinary checkpoint in `directory`. Raises UnsupportedArchitecture, MalformedModel."""
        return cls(Original.read(directory), parts)

    def copy(self) -> "Overlay":
        """Return an independent overlay of the same parts: adding to one leaves the other unchanged."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list | set):
                setattr(twin, name, value.copy())
        return twin

    def add(self, part: Part) -> None:
        """Lay one more part over the present ones."""
        self._lay(part)
        self.inventory = self._present_inventory()

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of the remaining blocks, in order."""
        return tuple(block for block in range(self.original.inventory.blocks) if block not in self.removed)

    @property
    def structures(self) -> dict[str, Form]:
        """The structure of every replaced module, including a head that reads a factored embedding."""
        present = dict(self._forms)
        if self.architecture.embedding in present and is_tied(self.original.config):
            present.setdefault(self.architecture.head, {"kind": "tied", "to": self.architecture.embedding})
        return present

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the original stores its embedding."""
        return DTYPES[self.original.tensors[self.original.names[f"{self.architecture.embedding}.weight"]].dtype]

    @property
    def is_factored(self) -> bool:
        """True if any module is replaced, so that the result is no ordinary checkpoint."""
        return bool(self._forms)

    @property
    def codes(self) -> Mapping[str, str]:
        """The code's name of every tensor that is stored in one, by the tensor's name."""
        return self._codes

    def encoding(self, name: str) -> Encoded | None:
        """Return a matrix [out, in] as it is stored in a code, or None if it is stored as plain numbers."""
        return self._held[self._holders[name]].encoded(name) if name in self._codes else None

    def is_transposed(self, name: str) -> bool:
        """Return whether the checkpoint stores a weight as [in, out]."""
        return any(f"{site.name}.weight" == name for site in self.original.inventory.sites if site.layout == "conv1d")

    @property
    def is_tied(self) -> bool:
        """True if the output head reads the embedding's table or factors and stores nothing of its own."""
        form = self.structures.get(self.architecture.head)
        return is_tied(self.original.config) if form is None else form["kind"] == "tied"

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of every stored tensor, shared ones once."""
        return self._shapes

    def holder(self, name: str) -> Mapping[str, Tensor] | None:
        """Return the tensors of the part that holds the tensor `name`, or None where it is still the original's."""
        number = self._holders.get(name)
        return None if number is None else self._held[number]

    def stored_name(self, name: str) -> str:
        """Return the name in the original's files of a tensor that no part holds."""
        return self._sources[name]

    def parameters_of(self, module: str) -> int:
        """Return how many parameters a module stores, without its bias; 0 for one that is gone."""
        inside = (name for name in self._shapes if name.startswith(f"{module}.") and name != f"{module}.bias")
        return sum(math.prod(self._shapes[name]) for name in inside)

    def written_name(self, name: str) -> str:
        """Return the name of a module or tensor in a package, where remaining blocks and experts are renumbered without
        gaps."""
        return renumbered(self.experts.written(name), self.inventory.block_prefix, self.kept)

    def original_name(self, name: str) -> str:
        """Return the name here of a module or tensor that is called `name` in a package."""
        return self.experts.original(original_name(name, self.inventory.block_prefix, self.kept))

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the original without the rows of experts that are gone."""
        rows = self.experts.rows(name)
        return tensor if rows is None else tensor[list(rows)]

    def config(self) -> dict[str, Any]:
        """Return the original's config, resized to the remaining blocks, hidden units and attention heads.

        Raises ValueError where some blocks are narrower than others.
        """
        original, present = self.original, self.inventory
        alike = intermediate_sizes(present) <= intermediate_sizes(original.inventory)
        narrowed = None if alike else intermediate_size(present)
        config = _with_layer_lists(original.config, present.blocks) if self.removed else original.config
        counts = {len(kept) for block, kept in self.experts.by_block.items() if block not in self.removed}
        experts = present.experts.total if counts and present.experts is not None else None
        return resized_config(config, self.kept, present.blocks, narrowed, stated_heads(present), experts)

    def tensor_names(self) -> Iterator[str]:
        """Yield the name of every tensor of the package in a fixed order, the parts' tensors first."""
        for number, held in enumerate(self._held):
            yield from (name for name in held if self._holders.get(name) == number)
        yield from (name for name in self._sources if name in self._shapes and name not in self._holders)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. A floating-point one gets the dtype of the original's weight that it stands for.

        One that is stored in a code is decoded, and float32.
        """
        holder = self.holder(name)
        if holder is None:
            return self.cut(name, self.original.tensor(self._sources[name]))
        tensor = holder[name]
        if name in self._codes:
            return tensor
        return tensor.to(self.original_dtype(name)) if tensor.is_floating_point() else tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the package under its written name, in the order of `tensor_names`."""
        for name in self.tensor_names():
            yield self.written_name(name), self.tensor(name)

    def _lay(self, part: Part) -> None:
        """Lay a part over the present ones without updating the inventory."""
        number = len(self._held)
        held = DecodedTensors(part.tensors, part.encodings, filter(self.is_transposed, part.encodings))
        self._held.append(held)
        self.removed.update(part.removed)
        if part.experts:
            self._keep_experts(part.experts)
        for name in part.structures:
            self._replace(name, part.structures[name])
        for name in held:
            self._holders[name] = number
            self._shapes[name] = self._matrices[name] = held.shape(name)
            self._codes.pop(name, None)
        self._codes.update(part.encodings)
        for known in (self._forms, self._shapes, self._holders, self._codes):
            for name in [name for name in known if self._is_gone(name)]:
                del known[name]

    def _replace(self, name: str, form: Form) -> None:
        """Record the structure of a module and whether its `.weight` is still stored."""
        self._forms[name] = form
        weight = f"{name}.weight"
        if form["kind"] != "dense":
            for known in (self._holders, self._shapes, self._codes):
                known.pop(weight, None)
        elif name == self.architecture.head and weight not in self._shapes:
            table = f"{self.architecture.embedding}.weight"
            self._sources[weight] = self.original.names[table]
            self._shapes[weight] = self.original.tensors[self._sources[weight]].shape

    def _is_gone(self, name: str) -> bool:
        """Return whether a module or tensor belongs to a removed block or expert."""
        return block_of(name, self.original.inventory.block_prefix) in self.removed or self.experts.lack(name)

    def _keep_experts(self, kept: Mapping[int, tuple[int, ...]]) -> None:
        """Leave only these experts in the mixtures of these blocks.

        Raises ValueError where a part already holds a tensor of all experts of such a block.
        """
        self.experts = self.experts.keeping(kept)
        for name, shape in self._shapes.items():
            block = block_of(name, self.original.inventory.block_prefix)
            rows = self.experts.rows(name) if block in kept else None
            if rows is None:
                continue
            if name in self._holders:
                raise ValueError(f"{name} was changed before experts were removed; remove them first")
            self._shapes[name] = (len(rows), *shape[1:])

    def _present_inventory(self) -> Inventory:
        """Return the original's inventory with the remaining modules, their sizes and the stored parameters."""
        original = self.original.inventory
        in_blocks = [0] * original.blocks
        for name, shape in self._shapes.items():
            block = block_of(name, original.block_prefix)
            if block is not None:
                in_blocks[block] += math.prod(shape)
        return replace(
            original,
            sites=tuple(self._present(site) for site in original.sites if site.block not in self.removed),
            head=self._present_head(),
            total_parameters=sum(map(math.prod, self._shapes.values())),
            block_parameters=tuple(in_blocks),
            experts=self._present_experts(),
        )

    def _present_experts(self) -> ExpertCounts | None:
        """Return the experts of the mixtures, as many as the fullest of them still has."""
        counts, kept = self.original.inventory.experts, self.experts.by_block
        if counts is None or not kept:
            return counts
        blocks = [block for block, each in enumerate(counts.parameters) if each and block not in self.removed]
        return replace(counts, total=max((len(kept.get(block, range(counts.total))) for block in blocks), default=0))

    def _present_head(self) -> Site | None:
        """Return the output head as a module of its own, also where it no longer shares the embedding's table."""
        head, table = self.original.inventory.head, self.original.inventory.embedding
        if head is None and not self.is_tied:
            return replace(table, name=self.architecture.head, layout="linear")
        return head

    def _present(self, site: Site) -> Site:
        """Return the module with the size of the last weight that a part gave it before it was factored."""
        shape = self._matrices.get(f"{site.name}.weight")
        if shape is None:
            return site
        rows, columns = shape if site.layout == "linear" else reversed(shape)
        return replace(site, out_features=rows, in_features=columns)

    def original_dtype(self, name: str) -> torch.dtype:
        """Return the dtype of the original's weight that a part's tensor stands for. Raises KeyError where there is
        none."""
        module = name
        while module and module not in self._forms:
            module = module.rpartition(".")[0]
        weight = f"{module}.weight" if module else name
        if weight == f"{self.architecture.head}.weight" and weight not in self._sources:
            weight = f"{self.architecture.embedding}.weight"
        stored_name = self._sources[weight if weight in self._sources else name]
        return DTYPES[self.original.tensors[stored_name].dtype]


def _with_layer_lists(config: Mapping[str, Any], blocks: int) -> Mapping[str, Any]:
    """Return the config with the lists that transformers derives from a layer's number where the file states none:
    layer types, and whether a layer has rotary positions."""
    derived = vars(CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)))
    lists = {
        name: list(value)
        for name, value in derived.items()
        if isinstance(value, list | tuple) and len(value) == blocks and "layer" in name and not config.get(name)
    }
    return {**config, **lists}
