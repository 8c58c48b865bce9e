"""Models that compress well for their size, calibration text for them, and the comparison of parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.models import initialised
from workers.compression.math.sensitivity import Sensitivity, measure
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart

SIZES: Mapping[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}
TINY: Mapping[str, Mapping[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 96},
    "gpt_neox": {},
    "phi3": {"pad_token_id": 0},
}
UNTIED: Mapping[str, Mapping[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "vocab_size": 400},
    "gpt_neox": {"vocab_size": 400},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 96, "vocab_size": 400, "tie_word_embeddings": False},
    "phi": {"vocab_size": 24},
}


def open_initialised(model_type: str, directory: Path, settings: Mapping[str, Any] | None = None) -> StreamedModel:
    """Write a model of SIZES and `settings`, by default those of TINY, and open it block by block."""
    initialised(model_type, **{**SIZES, **(settings or TINY[model_type])}).save_pretrained(directory)
    return StreamedModel.open(directory)


def calibration(vocabulary: int = 80) -> Tensor:
    """Return random token ids [6, 32]."""
    return torch.randint(vocabulary, (6, 32), generator=torch.Generator().manual_seed(1))


def sensitivities_of(model: StreamedModel) -> dict[str, Sensitivity]:
    """Return the sensitivities of all sites, measured on `calibration`."""
    ids = calibration(model.inventory.vocab_size)
    return {name: found for part in measure(model, ids) for name, found in part.items()}


def same(found: CompressedPart, expected: CompressedPart) -> bool:
    """Return whether two parts are the same, bit for bit."""
    return (
        (found.name, found.removed, found.errors) == (expected.name, expected.removed, expected.errors)
        and found.tensors.keys() == expected.tensors.keys()
        and all(torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)
    )
