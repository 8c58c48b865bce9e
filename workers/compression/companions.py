"""The tokenizer of a model, opened without trust, and the files beside the weights as a package carries them.

    tokenizer = open_tokenizer(directory)
    copy_companions(source, package)          # once config.json lies in `package`

transformers derives a tokenizer's class, and with it how text is split, from the `model_type` beside it. A package with
a type of its own would lose that; there the tokenizer is written as the original's files resolve to it.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modelpress.spec.companions import (
    TEMPLATES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    companion_names,
    write_companions,
)
from modelpress.spec.config import read_config
from modelpress.spec.errors import NoTokenizer

GENERIC_CLASS = "PreTrainedTokenizerFast"
"""The class that takes tokenizer.json as it is, by the name that every release of transformers knows."""

_CODE_FIELDS = ("auto_map", "custom_pipelines")
_OF_TOKENIZER = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.", "merges.txt",
                 "tokenizer.model", "chat_template.", f"{TEMPLATES}/")  # fmt: skip
_IMPLIED_BY_CLASS = (
    "clean_up_tokenization_spaces",
    "model_input_names",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
)
_SENTENCEPIECE = ("sentencepiece", "protobuf", "tiktoken")


def open_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model in `directory`, from a cleaned copy of its files: no code of theirs can run,
    and nothing asks or waits.

    Raises:
        MalformedModel: a file beside the weights is not what it should be.
        NoTokenizer: transformers cannot open it.
    """
    with TemporaryDirectory(prefix="tokenizer-") as folder:
        cleaned = Path(folder)
        write_companions(directory, cleaned)
        if (directory / "config.json").exists():
            config = {name: value for name, value in read_config(directory).items() if name not in _CODE_FIELDS}
            (cleaned / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return _opened(cleaned)


def copy_companions(source: Path, directory: Path) -> None:
    """Write the companions of the model in `source` into the package `directory`, which has its config.json already.

    The package turns text into the same ids as the original does.

    Raises:
        MalformedModel, NoTokenizer: as `open_tokenizer` does; a model without any tokenizer file stays without.
    """
    write_companions(source, directory)
    if not _loses_its_type(source, directory) or not has_tokenizer(source):
        return
    tokenizer = open_tokenizer(source)
    for name in companion_names(directory):
        if name.startswith(_OF_TOKENIZER):
            (directory / name).unlink()
    with TemporaryDirectory(prefix="tokenizer-") as folder:
        saved = Path(folder)
        tokenizer.save_pretrained(saved)
        _state_class(saved / TOKENIZER_CONFIG, tokenizer)
        write_companions(saved, directory)


def sample_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return texts on which two tokenizers that differ are likely to: numbers, spaces, scripts, special tokens."""
    special = list(dict.fromkeys(map(str, tokenizer.all_special_tokens)))[:8]
    return [*_SAMPLES, *(f"before {token} after{token}" for token in special)]


def tokenised(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, Any]:
    """Return what two equal tokenizers agree in: the ids of `texts`, special tokens, padding side, chat template."""
    return {
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "special_tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "padding_side": tokenizer.padding_side,
        "chat_template": tokenizer.chat_template,
    }


_SAMPLES = (
    "In 1999 there were 12345 items and 3.14159 of them were HelloWorld, camelCase or snake_case.",
    "  two  spaces,\ttabs\n\n  and\r\n    indented lines   ",
    "Don't you'll we've it's; (brackets) [and] {braces} <tags/> 100% #1 @home a/b\\c",
    "Größe façade Żółć Ελλάδα Привет עברית العربية हिन्दी ไทย 中文字符 日本語のテキスト 한국어 👩‍👩‍👧 e\u0301",
    "",
)


def _opened(directory: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except MemoryError:  # of this machine, not of the file
        raise
    except Exception as error:  # a stranger's file makes transformers raise anything
        raise NoTokenizer(f"The model has no tokenizer that transformers can open{_hint(directory)}.") from error
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_tokens)):
        raise NoTokenizer("The model's tokenizer has no vocabulary beyond its special tokens.")
    return tokenizer


def _hint(directory: Path) -> str:
    """Return what may be missing where the tokenizer is a sentencepiece model alone."""
    if (directory / TOKENIZER).exists() or not (directory / "tokenizer.model").exists():
        return ""
    return (
        f": of {', '.join(_SENTENCEPIECE)} one is missing here, or tokenizer.model is damaged; "
        "a model with tokenizer.json needs none of them"
    )


def _loses_its_type(source: Path, directory: Path) -> bool:
    return read_config(source).get("model_type") != read_config(directory).get("model_type")


def has_tokenizer(source: Path) -> bool:
    """Return whether any file of a tokenizer lies in the directory."""
    return any(name.startswith(_OF_TOKENIZER) for name in companion_names(source))


def _state_class(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """State in tokenizer_config.json what the class of the tokenizer implies, and the generic class in its place."""
    if not tokenizer.is_fast:
        return
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    implied = {name: getattr(tokenizer, name) for name in _IMPLIED_BY_CLASS if hasattr(tokenizer, name)}
    path.write_text(json.dumps(config | implied | {"tokenizer_class": GENERIC_CLASS}), encoding="utf-8")
