"""llama.cpp's names for the ways in which byte-level BPE splits a text into words before it merges.

llama.cpp's converter recognises the way by a hash of sample text in token ids, which any change of the vocabulary
changes. Here it is recognised by what tokenizer.json says of it. Falcon's way is left out: llama.cpp follows it in
European scripts only.
"""

import json
from collections.abc import Mapping
from typing import Any

from modelpress.spec.errors import NoTokenizer

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_QWEN2 = f"{_CONTRACTIONS}{_WORDS}\\p{{N}}{_REST}"
_LLAMA3 = f"{_CONTRACTIONS}{_WORDS}\\p{{N}}{{1,3}}{_REST}"
_GPT4O = f"{_LOWER}{_CONTRACTIONS}?|{_UPPER}{_CONTRACTIONS}?|\\p{{N}}{{1,3}}{_SIGNS}"
_TEKKEN = f"{_LOWER}|{_UPPER}|\\p{{N}}{_SIGNS}"
_BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"

_BYTES, _WORDS_AND_BYTES = ("bytes",), ("words and bytes",)
_DIGIT = ("digit",)

_KNOWN: Mapping[tuple[tuple[str, ...], ...], tuple[str, str]] = {
    (_WORDS_AND_BYTES,): ("gpt-2", "gpt-2"),
    (_DIGIT, _WORDS_AND_BYTES): ("smollm", "smollm"),
    (("split", _QWEN2), _BYTES): ("qwen2", "qwen2"),
    (("split", _LLAMA3), _BYTES): ("dbrx", "llama-bpe"),
    (("split", _GPT4O), _BYTES): ("gpt-4o", "gpt-4o"),
    (("split", _TEKKEN), _BYTES): ("tekken", "tekken"),
    (("split", _BLOOM), _BYTES): ("bloom", "bloom"),
}
"""Steps of the pre-tokenizer -> name, and name where words that are tokens are not merged (`ignore_merges`)."""

_HARMLESS = ("NFC",)
"""Normalisers that llama.cpp lacks and that change no text that is normalised already."""


def splitting(stated: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer in a tokenizer.json. Raises NoTokenizer if it has none."""
    normaliser = stated.get("normalizer")
    if normaliser is not None and any(step["type"] not in _HARMLESS for step in _parts(normaliser, "normalizers")):
        raise NoTokenizer(f"llama.cpp does not change text as this tokenizer does before it splits it: {normaliser}.")
    steps = tuple(_step(part) for part in _parts(stated.get("pre_tokenizer") or {"type": "none"}, "pretokenizers"))
    if steps not in _KNOWN:
        raise NoTokenizer(
            "llama.cpp has no name for the way in which this tokenizer splits text into words: "
            f"{json.dumps(stated.get('pre_tokenizer'), ensure_ascii=False)}."
        )
    return _KNOWN[steps][bool(stated["model"].get("ignore_merges"))]


def _parts(stated: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return list(stated[name]) if stated["type"] == "Sequence" else [stated]


def _step(stated: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a step of the pre-tokenizer does."""
    match stated:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _WORDS_AND_BYTES
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return _BYTES
        case {"type": "Digits", "individual_digits": True}:
            return _DIGIT
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return ("split", pattern)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return ("split", pattern)
    return ("unknown", json.dumps(stated, sort_keys=True))
