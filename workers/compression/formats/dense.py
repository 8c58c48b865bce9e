"""Write the dense export: every compact layer multiplied out into a matrix.

The result is an ordinary checkpoint of the original's architecture, for engines that run no code from a checkpoint. It
computes what the factored model computes, except that each product is rounded to the dtype of its weights. It is as
large as any model of its shape. `config.json` marks it with "dense_export": true.

Promise: the directory appears complete or not at all; one matrix at a time is in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from workers.compression import structures
from workers.compression.companions import copy_companions
from workers.compression.formats.files import complete, widely_named, write_json, write_weights
from workers.compression.formats.writer import Writer, Written
from workers.compression.models.skeleton import empty_model, head_name
from workers.compression.overlay import Overlay

MARK = "dense_export"
"""The field of config.json that marks a dense export."""


class Dense(Writer):
    """Writer of factored models with their factors multiplied out."""

    def write(self, overlay: Overlay, destination: Path) -> Written:
        """Write the model as `Writer.write` says. Raises ValueError if it has no factored layers."""
        if not overlay.is_factored:
            raise ValueError("the model has no factored layers, so its main checkpoint is dense already")
        dense = DenseModel(overlay)
        config = dense.config()
        with complete(destination) as directory:
            entries = write_weights(lambda: widely_named(dense.tensors(), config), directory)
            write_json(directory / "config.json", config | {MARK: True})
            copy_companions(overlay.original.directory, directory)
        return Written(destination, sum(entry.numbers for entry in entries), sum(entry.bytes for entry in entries))


class DenseModel:
    """A compressed model whose compact layers are read as matrices, each multiplied out when it is read."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._layers = self._empty_layers()

    def config(self) -> dict[str, Any]:
        """Return the original's config, resized. A head that shares the embedding's factors is tied to its table."""
        config = self._overlay.config()
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[config["model_type"]]]
        return {**config, "architectures": [kind.__name__], "tie_word_embeddings": self._overlay.is_tied}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor under its written name, always in the same order."""
        overlay, factors = self._overlay, tuple(f"{name}." for name in self._layers)
        for name in self._layers:
            yield f"{overlay.written_name(name)}.weight", self._multiplied_out(name)
        for name in overlay.tensor_names():
            if not name.startswith(factors) or name.endswith(".bias"):
                yield overlay.written_name(name), overlay.tensor(name)

    def _empty_layers(self) -> dict[str, nn.Module]:
        """Return the compact layers by name, without weights."""
        overlay, head = self._overlay, self._overlay.architecture.head
        skeleton = empty_model(overlay.config(), torch.float32, torch.device("cpu"))
        forms = {name: form for name, form in overlay.structures.items() if form["kind"] != "tied"}
        own = {name: head_name(skeleton) if name == head else overlay.written_name(name) for name in forms}
        structures.replace(skeleton, {own[name]: form for name, form in forms.items()})
        return {name: skeleton.get_submodule(own[name]) for name in forms}

    @torch.no_grad()
    def _multiplied_out(self, name: str) -> Tensor:
        """Return the matrix of a compact layer as the architecture stores it, in the dtype of its factors."""
        layer: Any = self._layers[name]
        empty = layer.state_dict()
        tensors = {key: self._overlay.tensor(f"{name}.{key}") for key in empty}
        (dtype,) = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        exact = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
        layer.load_state_dict(exact, assign=True)
        matrix: Tensor = layer.dense().to(dtype)
        layer.load_state_dict(empty, assign=True)
        architecture = self._overlay.architecture
        transposed = name.startswith(f"{architecture.blocks}.") and architecture.layout != "linear"
        return (matrix.T if transposed else matrix).contiguous()
