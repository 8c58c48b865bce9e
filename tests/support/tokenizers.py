"""Tiny trained tokenizers of the kinds that models have."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The quick brown fox jumps over the lazy dog, while seven wizards box and don't judge my vow of 1234 sphinxes.",
    "  Größe, façade and Ελλάδα: Привет, 日本語のテキスト and 한국어 in HelloWorld, camelCase\n\n and tabs\t.",
)
SPECIAL = ("<unk>", "<s>", "</s>")


def byte_level(splitting: Sequence[PreTokenizer], *, words: bool, size: int = 400) -> PreTrainedTokenizerFast:
    """Return byte-level BPE that splits text by `splitting` and, if `words`, by GPT-2's pattern."""
    tokenizer = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitting, bytes_]) if splitting else bytes_
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=list(SPECIAL))
    )
    return _wrapped(tokenizer)


def sentencepiece_like(*, leading_space: bool = True, size: int = 400) -> PreTrainedTokenizerFast:
    """Return BPE with bytes as a way out, as Llama 2 and Gemma have it; a text begins with <s>."""
    spaces = normalizers.Replace(" ", "▁")
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if leading_space else spaces
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=size))
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt = sorted(trained.get_vocab(), key=lambda piece: trained.get_vocab()[piece])
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *learnt])}
    merges = [tuple(pair) for pair in _merges(trained)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer)


def _merges(tokenizer: Tokenizer) -> list[Sequence[str]]:
    found: list[Sequence[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return found


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
