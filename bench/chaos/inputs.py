"""The model and the texts that the soak's jobs name. Nothing is computed with them: they are only checked and read."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box "


def prepare(directory: Path) -> None:
    """Write a tiny Llama to `models/tiny`, and two texts to `texts`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory / "models" / "tiny")
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(tokenizer_object=tokenizer).save_pretrained(directory / "models" / "tiny")
    (directory / "texts").mkdir()
    (directory / "texts" / "calibration.txt").write_text(WORDS * 200)
    (directory / "texts" / "evaluation.txt").write_text(WORDS[::-1] * 200)
