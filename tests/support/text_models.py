"""Tiny random models with a byte-level tokenizer, as directories that anything can open."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.models import initialised

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "box",
    "and",
    "judge",
    "my",
    "vow",
    "of",
    "sphinx",
    "black",
    "quartz",
]


TQCOMPRESSOR_RATIOS = {False: 1.09, True: 1.265}
"""How many times smaller `tqcompressor` makes the tiny GPT-2, without and with a tied head."""


def write_tiny_model(directory: Path, blocks: int = 3, hidden_size: int = 32, positions: int = 256) -> Path:
    """Write a Llama, its weights in float32, with its tokenizer; return the directory."""
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
    }
    return _write("llama", sizes, directory)


def write_tiny_gpt2(directory: Path, blocks: int = 2, width: int = 64) -> Path:
    """Write a GPT-2 in the same way, wide enough for the presets to make it smaller."""
    return _write("gpt2", {"n_embd": width, "n_layer": blocks, "n_head": 4, "n_positions": 256}, directory)


def write_tiny_mixture(directory: Path) -> Path:
    """Write a mixture of eight experts in the same way."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 256}
    return _write("qwen3_moe", {**sizes, **heads, **experts}, directory)


def write_tiny_inferred(directory: Path) -> Path:
    """Write a Helium, whose architecture is not registered, in the same way."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64, "max_position_embeddings": 256}
    return _write("helium", {**sizes, **heads, "pad_token_id": 0}, directory)


def _write(model_type: str, sizes: Mapping[str, int], directory: Path) -> Path:
    tokenizer = byte_tokenizer()
    initialised(model_type, vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def amplify_blocks(directory: Path, factor: float = 20.0) -> None:
    """Multiply the blocks' matrices, so that the output depends on them; as initialised, it hardly does."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    amplified = {name: tensor * factor if ".layers." in name else tensor for name, tensor in tensors.items()}
    save_file(amplified, path, metadata={"format": "pt"})


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the 256 bytes and one that begins and ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


def write_text(path: Path, words: int, offset: int = 0) -> Path:
    """Write plain English words in a fixed order; another offset gives another text."""
    step = 7 + offset
    path.write_text(" ".join(WORDS[(number * step + number // 5) % len(WORDS)] for number in range(words)))
    return path
