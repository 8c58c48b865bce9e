"""What the package of a compressed model holds: its config, the structures of its modules, its tensors by name.

The package holds the original's tensors, less those of removed blocks and the `.weight` of every site that got a
structure, plus the tensors of the parts, in the original's dtypes. Parts number the blocks as the original does; the
package numbers those that remain without a gap.

Promise: everything can be read as often as needed; one tensor at a time is in memory beside one part.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
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

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Part(Protocol):
    """A finished piece of the compressed model; `sequential.CompressedPart` is one."""

    @property
    def structures(self) -> Mapping[str, Mapping[str, Any]]:
        """Full module name to the structure's JSON form."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Full tensor name to tensor."""

    @property
    def removed(self) -> tuple[int, ...]:
        """Blocks that are left out."""


class Content:
    """The parts laid over the original. Of a tensor or structure in several parts, the last one counts."""

    def __init__(self, source: Path, parts: Iterable[Part]) -> None:
        self._config: dict[str, Any] = read_config(source)
        self._parts = parts
        self._stored = stored_tensors(source)
        self._names = weights(self._config, self._stored)
        self._inventory = _inventory(self._config, self._stored)
        self._removed: set[int] = set()
        self._structures: dict[str, Mapping[str, Any]] = {}
        self._holders: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for number, part in enumerate(parts):
            self._survey(number, part)
        self._kept = [block for block in range(self._inventory.blocks) if block not in self._removed]

    def config(self) -> dict[str, Any]:
        """The original's config, resized. Raises ValueError where some blocks are narrower than others."""
        present = self._present_inventory()
        size = intermediate_size(present)
        narrowed = None if size == intermediate_size(self._inventory) else size
        config = _with_layer_types(self._config) if self._removed else self._config
        return resized_config(config, self._kept, self._inventory.blocks, narrowed, stated_heads(present))

    def structures(self) -> dict[str, Mapping[str, Any]]:
        """The structure of every replaced module, the head included that a factored embedding takes along."""
        present = {self._renumbered(name): form for name, form in self._structures.items() if self._remains(name)}
        architecture = architecture_of(self._config)
        if architecture.embedding in present and is_tied(self._config):
            present.setdefault(architecture.head, {"kind": "tied", "to": architecture.embedding})
        return present

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the package, always in the same order."""
        for number, part in enumerate(self._parts):
            for name, tensor in part.tensors.items():
                if self._holders.get(name) == number and self._remains(name):
                    yield self._renumbered(name), self._in_original_dtype(name, tensor)
        superseded = self._holders.keys() | {f"{site}.weight" for site in self._structures}
        for name, stored_name in self._names.items():
            if name not in superseded and self._remains(name):
                yield self._renumbered(name), _read(self._stored[stored_name], stored_name)
        architecture = architecture_of(self._config)
        untied = is_tied(self._config) and self._structures.get(architecture.head, {}).get("kind") == "dense"
        if untied and f"{architecture.head}.weight" not in self._holders:
            # The head keeps the original's table for itself.
            table = self._names[f"{architecture.embedding}.weight"]
            yield f"{architecture.head}.weight", _read(self._stored[table], table)

    def _survey(self, number: int, part: Part) -> None:
        self._removed.update(part.removed)
        self._structures.update(part.structures)
        for site in part.structures:
            self._holders.pop(f"{site}.weight", None)
        for name, tensor in part.tensors.items():
            self._holders[name] = number
            self._shapes[name] = tuple(tensor.shape)

    def _present_inventory(self) -> Inventory:
        sites = (site for site in self._inventory.sites if site.block not in self._removed)
        return replace(self._inventory, sites=tuple(self._present(site) for site in sites))

    def _present(self, site: Site) -> Site:
        """The site as large as the last weight that any part gave it, before it was factored."""
        shape = self._shapes.get(f"{site.name}.weight")
        if shape is None:
            return site
        rows, columns = shape if site.layout == "linear" else reversed(shape)
        return replace(site, out_features=rows, in_features=columns)

    def _remains(self, name: str) -> bool:
        return block_of(name, self._inventory.block_prefix) not in self._removed

    def _renumbered(self, name: str) -> str:
        return renumbered(name, self._inventory.block_prefix, self._kept)

    def _in_original_dtype(self, name: str, tensor: Tensor) -> Tensor:
        """A floating tensor in the dtype of the weight that it stands for, others as they are."""
        if not tensor.is_floating_point():
            return tensor
        replaced = next((f"{site}.weight" for site in self._structures if name.startswith(f"{site}.")), name)
        architecture = architecture_of(self._config)
        if is_tied(self._config) and replaced == f"{architecture.head}.weight":
            # A tied head that has become a matrix of its own stands for the embedding's table.
            replaced = f"{architecture.embedding}.weight"
        return tensor.to(DTYPES[self._stored[self._names[replaced]].dtype])


def _inventory(config: dict[str, Any], stored: Mapping[str, StoredTensor]) -> Inventory:
    return inventory(config, {name: tensor.shape for name, tensor in stored.items()})


def _with_layer_types(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the layer types that the library derives from a layer's number where the file is silent."""
    derived = getattr(CONFIG_MAPPING[config["model_type"]].from_dict(config), "layer_types", None)
    return config if config.get("layer_types") or not derived else {**config, "layer_types": list(derived)}


def _read(stored: StoredTensor, name: str) -> Tensor:
    with safe_open(stored.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor
