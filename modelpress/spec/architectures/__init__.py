"""The architectures that can be compressed: one file for each family, one entry in the table below. Further ones are
inferred (`inferred.py`).

An architecture states names only. It does not list linear layers: every two-dimensional `.weight` inside a block is one
(`spec.inventory`).
"""

from collections.abc import Mapping
from typing import Any

from modelpress.spec.architectures.architecture import (
    Architecture,
    Attention,
    Experts,
    GgufNames,
    HeadMatrices,
    Mlp,
)
from modelpress.spec.architectures.cohere import COHERE, COHERE2
from modelpress.spec.architectures.exaone import EXAONE4
from modelpress.spec.architectures.fairseq_like import BIOGPT, XGLM
from modelpress.spec.architectures.gemma import GEMMA, GEMMA2, GEMMA3_TEXT, GEMMA4_TEXT, VAULTGEMMA
from modelpress.spec.architectures.glm import GLM, GLM4
from modelpress.spec.architectures.gpt2 import GPT2
from modelpress.spec.architectures.gpt_like import BLOOM, CODEGEN, FALCON, GPT_BIGCODE, GPTJ, MPT
from modelpress.spec.architectures.gpt_neox import GPT_NEOX, PERSIMMON
from modelpress.spec.architectures.granite import GRANITE
from modelpress.spec.architectures.hybrids import (
    FALCON_H1,
    GRANITEMOEHYBRID,
    LFM2,
    QWEN3_5_MOE_TEXT,
    QWEN3_5_TEXT,
    QWEN3_NEXT,
)
from modelpress.spec.architectures.inferred import Inferred
from modelpress.spec.architectures.llama import LLAMA
from modelpress.spec.architectures.llama_relatives import (
    APERTUS,
    ARCEE,
    CWM,
    ERNIE4_5,
    HUNYUAN_V1_DENSE,
    JAIS2,
    NEMOTRON,
    SEED_OSS,
    SMOLLM3,
    STABLELM,
    STARCODER2,
)
from modelpress.spec.architectures.mistral import MINISTRAL, MINISTRAL3, MISTRAL
from modelpress.spec.architectures.mixtures import (
    DEEPSEEK_V3,
    DOTS1,
    GLM4_MOE,
    GPT_OSS,
    GRANITEMOE,
    LLAMA4_TEXT,
    MIXTRAL,
    OLMOE,
    PHIMOE,
    QWEN2_MOE,
    QWEN3_MOE,
)
from modelpress.spec.architectures.olmo import OLMO, OLMO2, OLMO3
from modelpress.spec.architectures.opt import OPT
from modelpress.spec.architectures.phi import PHI, PHI3
from modelpress.spec.architectures.qwen import QWEN2, QWEN3
from modelpress.spec.errors import UnsupportedArchitecture

__all__ = [
    "ARCHITECTURES",
    "INFERRED",
    "Architecture",
    "Attention",
    "Experts",
    "GgufNames",
    "HeadMatrices",
    "Inferred",
    "Mlp",
    "architecture_named",
    "architecture_of",
    "find_architecture",
    "is_registered",
]

ARCHITECTURES: dict[str, Architecture] = {
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
        GEMMA4_TEXT,
        PHI,
        PHI3,
        APERTUS,
        ARCEE,
        BIOGPT,
        BLOOM,
        CODEGEN,
        COHERE,
        COHERE2,
        CWM,
        ERNIE4_5,
        EXAONE4,
        FALCON,
        GLM,
        GLM4,
        GPTJ,
        GPT_BIGCODE,
        GRANITE,
        HUNYUAN_V1_DENSE,
        JAIS2,
        MINISTRAL,
        MINISTRAL3,
        MPT,
        NEMOTRON,
        OLMO,
        OLMO2,
        OLMO3,
        PERSIMMON,
        SEED_OSS,
        SMOLLM3,
        STABLELM,
        STARCODER2,
        VAULTGEMMA,
        XGLM,
        DEEPSEEK_V3,
        DOTS1,
        GLM4_MOE,
        GPT_OSS,
        GRANITEMOE,
        LLAMA4_TEXT,
        MIXTRAL,
        OLMOE,
        PHIMOE,
        QWEN2_MOE,
        QWEN3_MOE,
        FALCON_H1,
        GRANITEMOEHYBRID,
        LFM2,
        QWEN3_5_MOE_TEXT,
        QWEN3_5_TEXT,
        QWEN3_NEXT,
    )
}
"""Every registered architecture by its `model_type`."""

INFERRED = Inferred.read()
"""The architectures that are not registered."""


def is_registered(model_type: str) -> bool:
    """Return whether the architecture is registered; others are inferred."""
    return model_type in ARCHITECTURES


def find_architecture(model_type: object) -> Architecture | None:
    """Return the architecture of a model type; None if it is neither registered nor understood."""
    name = model_type if isinstance(model_type, str) else ""
    return ARCHITECTURES.get(name) or INFERRED.understood.get(name)


def architecture_named(model_type: object) -> Architecture:
    """Return the architecture of a model type. Raises UnsupportedArchitecture if it is neither registered nor
    understood."""
    if (found := find_architecture(model_type)) is None:
        raise UnsupportedArchitecture(
            f"The architecture {model_type!r} is not supported: {INFERRED.reason(model_type)}. Supported are: "
            f"{', '.join(sorted(ARCHITECTURES))}."
        )
    return found


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of `config["model_type"]`. Raises UnsupportedArchitecture if it is neither registered
    nor understood, or the config turns something on that the architecture's entry refuses."""
    try:
        architecture = architecture_named(config.get("model_type"))
    except UnsupportedArchitecture as error:
        raise UnsupportedArchitecture(f"{error}{_part_of(config)}") from error
    if wrong := next((name for name, default in architecture.refused.items() if config.get(name, default)), None):
        raise UnsupportedArchitecture(
            f"A model of the architecture {architecture.model_type!r} in which {wrong} of config.json is on is not "
            "supported."
        )
    return architecture


def _part_of(config: Mapping[str, Any]) -> str:
    """Return the sentence on the language model that a model of several kinds of input holds; '' without one."""
    inner = config.get("text_config")
    kind = inner.get("model_type") if isinstance(inner, Mapping) else None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        return ""
    return f" Its language model, of the type {kind!r}, is supported: save that part as a model of its own."
