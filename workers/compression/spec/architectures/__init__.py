"""The architectures that can be compressed: one file for each family, one entry in the table below.

An architecture states names only. It does not list linear layers: every two-dimensional `.weight` inside a block is one
(`spec.inventory`).
"""

from collections.abc import Mapping
from typing import Any

from workers.compression.spec.architectures.architecture import Architecture, Attention, GgufNames, HeadMatrices, Mlp
from workers.compression.spec.architectures.gemma import GEMMA, GEMMA2, GEMMA3_TEXT
from workers.compression.spec.architectures.gpt2 import GPT2
from workers.compression.spec.architectures.gpt_neox import GPT_NEOX
from workers.compression.spec.architectures.llama import LLAMA
from workers.compression.spec.architectures.mistral import MISTRAL
from workers.compression.spec.architectures.opt import OPT
from workers.compression.spec.architectures.phi import PHI, PHI3
from workers.compression.spec.architectures.qwen import QWEN2, QWEN3
from workers.compression.spec.errors import UnsupportedArchitecture

__all__ = ["ARCHITECTURES", "Architecture", "Attention", "GgufNames", "HeadMatrices", "Mlp", "architecture_of"]

ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (
        GPT2,
        OPT,
        GPT_NEOX,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA,
        GEMMA2,
        GEMMA3_TEXT,
        PHI,
        PHI3,
    )
}
"""Every supported architecture by its `model_type`."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of `config["model_type"]`. Raises UnsupportedArchitecture if it is not registered."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"The architecture {model_type!r} is not supported. Supported are: {', '.join(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[model_type]
