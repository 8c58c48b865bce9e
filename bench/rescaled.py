"""Llama-like checkpoints with rescaled channels: the same function, with weights on no grid of an earlier rounding.

    rescale(source, destination)          # two directories of config.json and safetensors

A model that was read from a file of 4 bits flatters the codes that hold its levels. Each channel between two matrices
is multiplied by exp(SPREAD · N(0, 1)) where it is written and divided by it where it is read: from the gain of a norm
to the matrices behind it, from values to the output of attention, from the MLP's up to its down projection.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelpress.spec.config import read_config

SPREAD = 0.1
"""Standard deviation of the factors' logarithms."""

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The matrices that read each norm of a block."""


def rescale(source: Path, destination: Path, *, spread: float = SPREAD, seed: int = 0) -> None:
    """Write the checkpoint `source`, one file of safetensors, to `destination` with rescaled channels."""
    config = read_config(source)
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for index in range(config["num_hidden_layers"]):
        block = _Block(tensors, f"model.layers.{index}.", spread, generator)
        for norm, readers in READERS.items():
            factors = block.factors(norm)
            block.scale_rows(norm, factors)
            for name in readers:
                block.scale_columns(name, 1 / factors)
        factors = block.factors("mlp.up_proj")
        block.scale_rows("mlp.up_proj", factors)
        block.scale_columns("mlp.down_proj", 1 / factors)
        factors = block.factors("self_attn.v_proj")
        block.scale_rows("self_attn.v_proj", factors)
        # Query heads that share a value head read the same channels.
        sharing = config["num_attention_heads"] // config["num_key_value_heads"]
        heads = factors.view(config["num_key_value_heads"], -1).repeat_interleave(sharing, dim=0)
        block.scale_columns("self_attn.o_proj", 1 / heads.flatten())
    shutil.copytree(source, destination)
    save_file(tensors, destination / "model.safetensors", metadata={"format": "pt"})


class _Block:
    """The tensors of one block, by name inside it."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str, spread: float, generator: torch.Generator) -> None:
        self._tensors, self._prefix, self._spread, self._generator = tensors, prefix, spread, generator

    def factors(self, name: str) -> Tensor:
        """Return one random factor for each output of a module."""
        count = len(self._tensors[f"{self._prefix}{name}.weight"])
        return torch.exp(self._spread * torch.randn(count, generator=self._generator))

    def scale_rows(self, name: str, factors: Tensor) -> None:
        """Multiply a module's outputs by `factors` [out]."""
        weight = self._tensors[f"{self._prefix}{name}.weight"]
        rows = factors if weight.dim() == 1 else factors[:, None]
        self._tensors[f"{self._prefix}{name}.weight"] = (weight.float() * rows).to(weight.dtype)

    def scale_columns(self, name: str, factors: Tensor) -> None:
        """Multiply a module's weights for each input by `factors` [in]."""
        weight = self._tensors[f"{self._prefix}{name}.weight"]
        self._tensors[f"{self._prefix}{name}.weight"] = (weight.float() * factors).to(weight.dtype)
