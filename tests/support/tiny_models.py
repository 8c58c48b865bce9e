"""A tiny model of every supported architecture, with random weights of a size that lets every part be felt."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from workers.compression.models.edited import EditedModel

VOCABULARY, WIDTH, INNER, BLOCKS, POSITIONS = 96, 32, 48, 2, 64
WINDOW = 5  # shorter than the test sequences, so that sliding attention differs from full attention

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GATED = _COMMON | {"intermediate_size": INNER, "num_key_value_heads": 2}
_GEMMA = _GATED | {"head_dim": 8}

CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=BLOCKS,
        n_head=4,
        n_positions=POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": OPTConfig(**_COMMON, ffn_dim=INNER, word_embed_proj_dim=WIDTH),
    "opt-projected": OPTConfig(**_COMMON, ffn_dim=INNER, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt_neox": GPTNeoXConfig(**_COMMON, intermediate_size=INNER),
    "llama": LlamaConfig(**_GATED),
    "llama-tied": LlamaConfig(**_GATED, tie_word_embeddings=True),
    "mistral": MistralConfig(**_GATED, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**_GATED),
    "qwen3": Qwen3Config(**_GATED, head_dim=8, tie_word_embeddings=True),
    "gemma": GemmaConfig(**_GEMMA),
    "gemma2": Gemma2Config(**_GEMMA, sliding_window=WINDOW),
    "gemma3_text": Gemma3TextConfig(
        **_GEMMA, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi": PhiConfig(**_GATED),
    "phi3": Phi3Config(**_GATED),
}


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of random weights, the same at every call."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Initialisation leaves biases at zero and norms at one, which would hide that they were dropped.
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
    return model


@torch.no_grad()
def logits_of(model: EditedModel) -> torch.Tensor:
    """Of `token_ids`, block by block."""
    hidden = model.hidden(token_ids())
    for index in model.kept:
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    return model.logits(hidden)


def tiny_model(name: str) -> PreTrainedModel:
    """The model of that row of CONFIGS in fp32, the same at every call."""
    torch.manual_seed(0)
    # A copy: a model writes its dtype into its config when it is saved.
    return model_of(copy.deepcopy(CONFIGS[name]))


def save_tiny_model(name: str, directory: Path) -> PreTrainedModel:
    """Writes it as transformers does, and returns it."""
    model = tiny_model(name)
    model.save_pretrained(directory)
    return model


def token_ids(sequences: int = 2, length: int = 12) -> torch.Tensor:
    """Random ids [sequences, length] without special tokens."""
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))
