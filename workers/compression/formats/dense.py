"""The dense export of a factored package: every compact layer multiplied out into the matrix that it stands for.

    write_dense(package, destination)

The result is an ordinary checkpoint of the original's architecture, for engines that run no code of a checkpoint. It
computes what the package computes, but for the rounding of each product to the dtype of its weights, and it is as large
as any model of its shape. `config.json` says under "dense_export" that it is one.

Promise: the directory appears complete or not at all; one matrix at a time is in memory.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from workers.compression import structures
from workers.compression.formats.checkpoint import (
    SHARD_BYTES,
    copy_companions,
    publish,
    widely_named,
    write_json,
    write_weights,
)
from workers.compression.models.skeleton import empty_model, head_name
from workers.compression.spec.architectures import architecture_of
from workers.compression.spec.config import is_tied, original_config, read_config
from workers.compression.spec.headers import stored_tensors
from workers.compression.spec.inventory import weights

MARK = "dense_export"


def write_dense(package: Path, destination: Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Writes the export. Raises FileExistsError where `destination` is there already, ValueError where the package has
    no factors and so is dense as it is.
    """
    if destination.exists():
        raise FileExistsError(f"{destination} exists already")
    factored = FactoredCheckpoint(package)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = factored.dense_config()
    write_weights(lambda: widely_named(factored.dense_tensors(), config), partial, shard_bytes)
    write_json(partial / "config.json", config)
    copy_companions(package, partial)
    publish(partial, destination)
    return destination


class FactoredCheckpoint:
    """A package with compact layers."""

    def __init__(self, directory: Path) -> None:
        self._config, forms = original_config(read_config(directory))
        if not forms:
            raise ValueError(f"{directory.name} has no factors: it is dense as it is")
        self._architecture = architecture_of(self._config)
        self._stored = stored_tensors(directory)
        self._names = weights(self._config, self._stored)
        self._tied = any(form["kind"] == "tied" for form in forms.values())
        self._layers = self._empty_layers({name: form for name, form in forms.items() if form["kind"] != "tied"})

    def dense_config(self) -> dict[str, Any]:
        """The original's config, resized as the package's is. A head that read factors of the embedding is tied to its
        table again.
        """
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[self._config["model_type"]]]
        tied = self._tied or is_tied(self._config)
        return {**self._config, "architectures": [kind.__name__], "tie_word_embeddings": tied, MARK: True}

    def dense_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the export, always in the same order."""
        factors = tuple(f"{name}." for name in self._layers)
        for name in self._layers:
            yield f"{name}.weight", self._multiplied_out(name)
        for name in self._names:
            if not name.startswith(factors) or name.endswith(".bias"):
                yield name, self._read(name)

    def _empty_layers(self, forms: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
        """The compact layer of each name, without its numbers."""
        skeleton = empty_model(self._config, torch.float32, torch.device("cpu"))
        actual = {name: head_name(skeleton) if name == self._architecture.head else name for name in forms}
        structures.replace(skeleton, {actual[name]: form for name, form in forms.items()})
        return {name: skeleton.get_submodule(actual[name]) for name in forms}

    @torch.no_grad()
    def _multiplied_out(self, name: str) -> Tensor:
        """The matrix of a layer as the architecture stores it, in the dtype of its factors."""
        layer: Any = self._layers[name]
        empty = layer.state_dict()
        tensors = {key: self._read(f"{name}.{key}") for key in empty}
        (dtype,) = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        exact = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
        layer.load_state_dict(exact, assign=True)
        matrix: Tensor = layer.dense().to(dtype)
        layer.load_state_dict(empty, assign=True)
        inside = name.startswith(f"{self._architecture.blocks}.")
        transposed = inside and self._architecture.layout != "linear"
        return (matrix.T if transposed else matrix).contiguous()

    def _read(self, name: str) -> Tensor:
        stored = self._names[name]
        with safe_open(self._stored[stored].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored)
            return tensor
