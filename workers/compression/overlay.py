"""The compressed model as a value: finished parts laid over the checkpoint that they were made of.

    overlay = Overlay.open(directory, parts)
    overlay.kept, overlay.structures, overlay.shapes      # named and numbered as in the original
    overlay.inventory                                     # what is left, with the sizes that it has now
    overlay.config(), overlay.written_name(name)          # as a package states and names them
    for name in overlay.tensor_names():
        overlay.tensor(name)                              # one tensor at a time is read

The rules that hold for every compressed model stand here and nowhere else: of two parts that hold a tensor the later
counts; a factored matrix takes the place of its `.weight`; what belongs to a removed block is gone; an output head that
shares the embedding's table reads the factors once the table is factored, unless its own structure is "dense", in which
case it keeps the original's table for itself. The edited model, every format and the report ask it.

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

from workers.compression.spec.architectures import architecture_of
from workers.compression.spec.config import is_tied, read_config
from workers.compression.spec.dimensions import block_of, intermediate_size, renumbered, resized_config
from workers.compression.spec.headers import StoredTensor, stored_tensors
from workers.compression.spec.heads import stated_heads
from workers.compression.spec.inventory import Inventory, Site, inventory, weights

Form = Mapping[str, Any]
"""The JSON form of a structure, such as {"kind": "low_rank", "rank": 8}."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Part(Protocol):
    """A finished piece of the compressed model; `parts.CompressedPart` is one."""

    @property
    def structures(self) -> Mapping[str, Form]:
        """Full module name → the structure's JSON form."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Full tensor name → tensor, which may be read anew at each look-up."""

    @property
    def removed(self) -> tuple[int, ...]:
        """The blocks that are left out from this part on."""


@dataclass(frozen=True)
class Original:
    """A checkpoint before anything is laid over it.

    `names` maps the canonical name of each weight to its name in the files, `tensors` a name in the files to where the
    tensor lies. `structures` is not empty where the checkpoint is itself a factored package.
    """

    directory: Path
    config: Mapping[str, Any]
    inventory: Inventory
    names: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]
    structures: Mapping[str, Form] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Original":
        """Read an ordinary checkpoint's config and headers. Raises UnsupportedArchitecture, MalformedModel."""
        config = {name: value for name, value in read_config(directory).items() if name != "auto_map"}
        tensors = stored_tensors(directory)
        contents = inventory(config, {name: tensor.shape for name, tensor in tensors.items()})
        return cls(directory, config, contents, weights(config, tensors), tensors)

    def tensor(self, stored_name: str) -> Tensor:
        """Read one tensor by its name in the files, in its stored dtype."""
        # Opened anew each time: a mapping that stays open keeps every page that was read resident.
        with safe_open(self.tensors[stored_name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored_name)
            return tensor


class Overlay:
    """Parts laid over an original; `add` lays one more. Names and numbers of blocks are the original's throughout,
    except where `written` says otherwise."""

    def __init__(self, original: Original, parts: Iterable[Part] = ()) -> None:
        self.original = original
        self.architecture = architecture_of(original.config)
        self.removed: set[int] = set()
        self._forms: dict[str, Form] = dict(original.structures)
        self._sources = dict(original.names)
        self._shapes = {name: original.tensors[stored].shape for name, stored in original.names.items()}
        self._held: list[Mapping[str, Tensor]] = []
        self._holders: dict[str, int] = {}
        self._matrices: dict[str, tuple[int, ...]] = {}
        for part in parts:
            self._lay(part)
        self.inventory = self._present_inventory() if self._held else original.inventory

    @classmethod
    def open(cls, directory: Path, parts: Iterable[Part] = ()) -> "Overlay":
        """Lay `parts` over the ordinary checkpoint in `directory`. Raises UnsupportedArchitecture, MalformedModel."""
        return cls(Original.read(directory), parts)

    def copy(self) -> "Overlay":
        """Return an overlay of the same parts, to which others can be added without a trace in this one."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list | set):
                setattr(twin, name, value.copy())
        return twin

    def add(self, part: Part) -> None:
        """Lay one more part over all that is there."""
        self._lay(part)
        self.inventory = self._present_inventory()

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of the blocks that remain, in order."""
        return tuple(block for block in range(self.original.inventory.blocks) if block not in self.removed)

    @property
    def structures(self) -> dict[str, Form]:
        """The structure of every replaced module, the head included that reads a factored embedding."""
        present = dict(self._forms)
        if self.architecture.embedding in present and is_tied(self.original.config):
            present.setdefault(self.architecture.head, {"kind": "tied", "to": self.architecture.embedding})
        return present

    @property
    def is_factored(self) -> bool:
        """Whether any module is replaced, so that the result is no ordinary checkpoint."""
        return bool(self._forms)

    @property
    def is_tied(self) -> bool:
        """Whether the output head reads the embedding's table or its factors, and so stores nothing of its own."""
        form = self.structures.get(self.architecture.head)
        return is_tied(self.original.config) if form is None else form["kind"] == "tied"

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of every tensor that is stored, each distinct one once."""
        return self._shapes

    def holder(self, name: str) -> Mapping[str, Tensor] | None:
        """The tensors of the part that holds the one of this name; None where it is still the original's."""
        number = self._holders.get(name)
        return None if number is None else self._held[number]

    def stored_name(self, name: str) -> str:
        """The name in the original's files under which a tensor is read that no part holds."""
        return self._sources[name]

    def parameters_of(self, module: str) -> int:
        """Count the numbers that a module stores, without its bias; 0 for one that is gone."""
        inside = (name for name in self._shapes if name.startswith(f"{module}.") and name != f"{module}.bias")
        return sum(math.prod(self._shapes[name]) for name in inside)

    def written_name(self, name: str) -> str:
        """The name of a module or tensor in a package, where the blocks that remain are numbered without a gap."""
        return renumbered(name, self.inventory.block_prefix, self.kept)

    def config(self) -> dict[str, Any]:
        """The original's config, resized to the blocks, hidden units and attention heads that are left.

        Raises ValueError where some blocks are narrower than others.
        """
        original, present = self.original, self.inventory
        size = intermediate_size(present)
        narrowed = None if size == intermediate_size(original.inventory) else size
        config = _with_layer_types(original.config) if self.removed else original.config
        return resized_config(config, self.kept, present.blocks, narrowed, stated_heads(present))

    def tensor_names(self) -> Iterator[str]:
        """Yield the name of every tensor of the package, always in the same order: those of the parts come first."""
        for number, held in enumerate(self._held):
            yield from (name for name in held if self._holders.get(name) == number)
        yield from (name for name in self._sources if name in self._shapes and name not in self._holders)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. A floating one has the dtype of the original's weight that it stands for."""
        holder = self.holder(name)
        if holder is None:
            return self.original.tensor(self._sources[name])
        tensor = holder[name]
        return tensor.to(self._original_dtype(name)) if tensor.is_floating_point() else tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the package under its written name, in the order of `tensor_names`."""
        for name in self.tensor_names():
            yield self.written_name(name), self.tensor(name)

    def _lay(self, part: Part) -> None:
        number = len(self._held)
        self._held.append(part.tensors)
        self.removed.update(part.removed)
        for name in part.structures:
            self._replace(name, part.structures[name])
        for name, tensor in part.tensors.items():
            self._holders[name] = number
            self._shapes[name] = tuple(tensor.shape)
            self._matrices[name] = tuple(tensor.shape)
        for known in (self._forms, self._shapes, self._holders):
            for name in [name for name in known if self._is_gone(name)]:
                del known[name]

    def _replace(self, name: str, form: Form) -> None:
        self._forms[name] = form
        weight = f"{name}.weight"
        if form["kind"] != "dense":
            self._holders.pop(weight, None)
            self._shapes.pop(weight, None)
        elif name == self.architecture.head and weight not in self._shapes:
            table = f"{self.architecture.embedding}.weight"
            self._sources[weight] = self.original.names[table]
            self._shapes[weight] = self.original.tensors[self._sources[weight]].shape

    def _is_gone(self, name: str) -> bool:
        return block_of(name, self.original.inventory.block_prefix) in self.removed

    def _present_inventory(self) -> Inventory:
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
        )

    def _present_head(self) -> Site | None:
        """The head as a site of its own, also where it no longer shares the embedding's table."""
        head, table = self.original.inventory.head, self.original.inventory.embedding
        if head is None and not self.is_tied:
            return replace(table, name=self.architecture.head, layout="linear")
        return head

    def _present(self, site: Site) -> Site:
        """The site as large as the last weight that any part gave it, before it was factored."""
        shape = self._matrices.get(f"{site.name}.weight")
        if shape is None:
            return site
        rows, columns = shape if site.layout == "linear" else reversed(shape)
        return replace(site, out_features=rows, in_features=columns)

    def _original_dtype(self, name: str) -> torch.dtype:
        """The dtype of the weight that the tensor of a part stands for. Raises KeyError where there is none."""
        module = name
        while module and module not in self._forms:
            module = module.rpartition(".")[0]
        weight = f"{module}.weight" if module else name
        if weight == f"{self.architecture.head}.weight" and weight not in self._sources:
            weight = f"{self.architecture.embedding}.weight"
        stored_name = self._sources[weight if weight in self._sources else name]
        return DTYPES[self.original.tensors[stored_name].dtype]


def _with_layer_types(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the layer types that the library derives from a layer's number where the file is silent."""
    derived = getattr(CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)), "layer_types", None)
    return config if config.get("layer_types") or not derived else {**config, "layer_types": list(derived)}
