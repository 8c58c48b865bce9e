"""A tokenizer as GGUF files state it: tokens, merges or scores, special tokens and the chat template.

The facts come from the tokenizer that transformers opens, never from file names or model types, so a renamed or trimmed
vocabulary is read as well as a known one. llama.cpp has two kinds that our architectures use: byte-level BPE ("gpt2"),
whose ways to split text into words have names, and sentencepiece's BPE ("llama").
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from modelpress.spec.errors import NoTokenizer
from workers.compression.formats.gguf.splitting import splitting

_SPACE = "▁"
_LEAST_SCORE = -1e6
_IDS = {
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "unk_token_id": "unknown",
    "sep_token_id": "seperator",
    "pad_token_id": "padding",
    "mask_token_id": "mask",
}  # GGUF spells one of them so
DEFAULT_TEMPLATE = "default"
_NO_MERGE = "一 丁"
"""llama.cpp wants merges even where there are none; these two are no letters of byte-level BPE, so never met."""

NO_VOCABULARY = {"tokenizer.ggml.model": "none"}
"""The metadata of a model without a tokenizer."""


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, ends: Sequence[int] = ()) -> dict[str, Any]:
    """Return the metadata of a tokenizer by key.

    Args:
        rows: rows of the embedding; the vocabulary is padded or cut to as many tokens.
        ends: the tokens that end a text according to the model's generation config.

    Raises:
        NoTokenizer: if llama.cpp has no tokenizer of the kind, or splits text otherwise.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NoTokenizer("llama.cpp has no tokenizer of this kind: the model has no tokenizer.json.")
    stated = json.loads(backend.to_str())
    kind = stated["model"].get("type")
    if kind != "BPE":
        raise NoTokenizer(f"A GGUF file cannot hold a tokenizer of the kind {kind!r}, only BPE.")
    tokens, types = _tokens(stated, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in stated["model"]["merges"]]
    found: dict[str, Any] = {"tokens": tokens, "token_type": types}
    if stated["model"].get("byte_fallback"):
        found |= {
            "model": "llama",
            "pre": "default",
            "scores": _scores(tokens, merges),
            "add_space_prefix": _begins_with_space(stated),
        }
    else:
        found |= {"model": "gpt2", "pre": splitting(stated), "merges": merges or [_NO_MERGE]}
    keyed = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    return keyed | _special_tokens(tokenizer, rows, ends) | _templates(tokenizer)


def _tokens(stated: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of each row's token."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    unknown = stated["model"].get("unk_token")
    by_bytes = stated["model"].get("byte_fallback")
    for text, row in stated["model"]["vocab"].items():
        if row < rows:
            tokens[row], types[row] = text, TokenType.NORMAL
            if by_bytes and len(text) == 6 and text.startswith("<0x"):
                types[row] = TokenType.BYTE
            elif by_bytes and text == unknown:
                types[row] = TokenType.UNKNOWN
    for token in stated["added_tokens"]:
        if (row := token["id"]) < rows and types[row] is not TokenType.UNKNOWN:
            text = token["content"]
            tokens[row] = text if token["special"] else text.replace(_SPACE, " ")
            types[row] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    return tokens, [int(kind) for kind in types]


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Return each token's score: the earlier the merge that makes it, the higher."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [float(-ranks[token]) if token in ranks else _LEAST_SCORE for token in tokens]


def _begins_with_space(stated: Mapping[str, Any]) -> bool:
    """Return whether a space is put before the text."""
    steps = _steps(stated.get("normalizer"), "normalizers") + _steps(stated.get("pre_tokenizer"), "pretokenizers")
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") in ("always", "first"))
        for step in steps
    )


def _steps(stated: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    if stated is None:
        return []
    return list(stated[parts]) if stated["type"] == "Sequence" else [stated]


def _special_tokens(tokenizer: PreTrainedTokenizerBase, rows: int, ends: Sequence[int]) -> dict[str, Any]:
    """Return the ids of special tokens, and whether a text begins and ends with one."""
    ids = {name: getattr(tokenizer, name, None) for name in _IDS}
    found: dict[str, Any] = {
        f"tokenizer.ggml.{_IDS[name]}_token_id": value
        for name, value in ids.items()
        if isinstance(value, int) and 0 <= value < rows
    }
    further = [end for end in ends if end != ids["eos_token_id"] and 0 <= end < rows]
    if ids["eos_token_id"] is None and further:
        found["tokenizer.ggml.eos_token_id"] = further.pop(0)
    if further:
        found["tokenizer.ggml.eot_token_id"] = further[0]
    text = tokenizer("a")["input_ids"]
    found["tokenizer.ggml.add_bos_token"] = bool(text) and text[0] == ids["bos_token_id"]
    found["tokenizer.ggml.add_eos_token"] = bool(text) and text[-1] == ids["eos_token_id"]
    return found


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the chat templates: the default one, and others by name."""
    stated = tokenizer.chat_template
    named = stated if isinstance(stated, dict) else {} if stated is None else {DEFAULT_TEMPLATE: stated}
    found = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != DEFAULT_TEMPLATE}
    if found:
        found["tokenizer.chat_templates"] = [name for name in named if name != DEFAULT_TEMPLATE]
    if DEFAULT_TEMPLATE in named:
        found["tokenizer.chat_template"] = named[DEFAULT_TEMPLATE]
    return found
