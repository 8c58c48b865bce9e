"""The files beside a model's weights that travel into its package: tokenizer, chat templates, generation settings,
licence. Torch-free, for the API.

A stranger wrote them and a client opens them, perhaps with `trust_remote_code=True`. So none is copied unread: each
kind has a limit of bytes, and of each JSON file the fields that are known pass and all others are dropped, above all
`auto_map`, which names code to run.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelpress.spec.errors import MalformedModel, NoTokenizer
from modelpress.spec.json_files import parse_object, read_bounded

TEMPLATES = "additional_chat_templates"
MOST_TEMPLATES = 64
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = "tokenizer.json"

_TOKENIZERS: tuple[Set[str], ...] = (
    {TOKENIZER},
    {"tokenizer.model"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
)
"""Files that hold a vocabulary, together."""

_CLASS_NAME = re.compile(r"[A-Za-z]\w{0,99}", re.ASCII)

_TOKENIZER_FIELDS = frozenset(
    {
        "added_tokens_decoder", "add_dummy_prefix_space", "add_prefix_space", "additional_special_tokens", "backend",
        "chat_control_tokens", "chat_template", "clean_up_tokenization_spaces", "do_lower_case", "errors",
        "extra_special_tokens", "fix_mistral_regex", "keep_accents", "legacy", "max_length",
        "model_input_names", "model_max_length", "model_specific_special_tokens", "normalize", "pad_to_multiple_of",
        "pad_token_type_id", "padding_side", "remove_space", "response_schema", "response_template",
        "sp_model_kwargs", "spaces_between_special_tokens", "split_special_tokens", "stride", "strip_accents",
        "tokenizer_class", "trim_offsets", "truncation_side", "truncation_strategy", "use_default_system_prompt",
    }
)  # fmt: skip
"""Fields of tokenizer_config.json that transformers' own tokenizers read. Fields that end in `_token` pass as well:
`bos_token`, `add_bos_token`, and those that a model gives names of its own."""

_BACKEND_FIELDS = frozenset(
    {
        "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
        "model",
    }
)  # fmt: skip

_GENERATION_FIELDS = frozenset(
    {
        "_from_model_config", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cache_implementation",
        "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty", "eos_token_id", "epsilon_cutoff", "eta_cutoff",
        "exponential_decay_length_penalty", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id",
        "guidance_scale", "length_penalty", "low_memory", "max_length", "max_new_tokens", "max_time", "min_length",
        "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
        "output_attentions", "output_hidden_states", "output_logits", "output_scores", "pad_token_id", "penalty_alpha",
        "prefill_chunk_size", "remove_invalid_values", "renormalize_logits", "repetition_penalty",
        "return_dict_in_generate", "sequence_bias", "stop_strings", "suppress_tokens", "temperature", "token_healing",
        "top_h", "top_k", "top_p", "transformers_version", "typical_p", "use_cache",
    }
)  # fmt: skip


def _plain_text(content: bytes, name: str) -> bytes:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedModel(f"{name} is not UTF-8 text.") from error
    if "\0" in text:
        raise MalformedModel(f"{name} is not text: it holds a NUL.")
    return content


def _notice(content: bytes, name: str) -> bytes:
    if b"\0" in content:
        raise MalformedModel(f"{name} is not text: it holds a NUL.")
    return content


def _binary(content: bytes, name: str) -> bytes:
    return content


def _written(found: Mapping[str, Any]) -> bytes:
    return (json.dumps(found, indent=2) + "\n").encode()


def _tokenizer_config(content: bytes, name: str) -> bytes:
    found = parse_object(content, name)
    kept = {key: value for key, value in found.items() if key in _TOKENIZER_FIELDS or key.endswith("_token")}
    class_name = kept.get("tokenizer_class")
    if not isinstance(class_name, str) or not _CLASS_NAME.fullmatch(class_name):
        kept.pop("tokenizer_class", None)
    return _written(kept)


def _tokenizer(content: bytes, name: str) -> bytes:
    found = parse_object(content, name)
    if found.keys() <= _BACKEND_FIELDS:
        return content
    return _written({key: value for key, value in found.items() if key in _BACKEND_FIELDS})


def _special_tokens(content: bytes, name: str) -> bytes:
    found = parse_object(content, name)
    kept = ("additional_special_tokens", "extra_special_tokens")
    return _written({key: value for key, value in found.items() if key in kept or key.endswith("_token")})


def _token_ids(content: bytes, name: str) -> bytes:
    if any(type(number) is not int for number in parse_object(content, name).values()):
        raise MalformedModel(f"{name} does not map tokens to numbers.")
    return content


def _generation_config(content: bytes, name: str) -> bytes:
    """Return the fields that are known; a file that is no JSON becomes an empty one, as transformers passes it over."""
    try:
        found = parse_object(content, name)
    except MalformedModel:
        return _written({})
    return _written({key: value for key, value in found.items() if key in _GENERATION_FIELDS})


def _chat_template(content: bytes, name: str) -> bytes:
    return _written({key: value for key, value in parse_object(content, name).items() if key == "chat_template"})


@dataclass(frozen=True)
class _Kind:
    """One kind of companion: how its files are called, how large they may be, and what of them passes."""

    names: re.Pattern[str]
    largest: int
    cleaned: Callable[[bytes, str], bytes]


_KINDS = tuple(
    _Kind(re.compile(names, re.ASCII), largest, cleaned)
    for names, largest, cleaned in (
        (r"tokenizer_config\.json", 4_000_000, _tokenizer_config),
        (r"tokenizer\.json", 128_000_000, _tokenizer),
        (r"special_tokens_map\.json", 1_000_000, _special_tokens),
        (r"added_tokens\.json", 4_000_000, _token_ids),
        (r"vocab\.json", 64_000_000, _token_ids),
        (r"(vocab|merges)\.txt", 64_000_000, _plain_text),
        (r"tokenizer\.model", 64_000_000, _binary),
        (r"chat_template\.jinja", 1_000_000, _plain_text),
        (rf"{TEMPLATES}/[\w-]+\.jinja", 1_000_000, _plain_text),
        (r"chat_template\.json", 1_000_000, _chat_template),
        (r"generation_config\.json", 1_000_000, _generation_config),
        (r"(?i:LICEN[CS]E|NOTICE|USE_POLICY)[\w-]*(\.(?i:txt|md|rst|apache|mit))?", 1_000_000, _notice),
    )
)


def is_companion(name: str) -> bool:
    """Return whether a file of this name, relative to the model's directory, travels into the package."""
    return any(kind.names.fullmatch(name) for kind in _KINDS)


def companion_names(directory: Path) -> list[str]:
    """Return the names of the companions that `directory` holds, relative to it and sorted.

    Raises:
        MalformedModel: there are more than MOST_TEMPLATES named chat templates.
    """
    names = [path.name for path in directory.iterdir() if path.is_file()]
    templates = directory / TEMPLATES
    if templates.is_dir():
        named = [f"{TEMPLATES}/{path.name}" for path in templates.iterdir() if path.is_file()]
        if len(named) > MOST_TEMPLATES:
            raise MalformedModel(f"{TEMPLATES} holds more than {MOST_TEMPLATES} files.")
        names += named
    return sorted(filter(is_companion, names))


def require_tokenizer(names: Set[str]) -> None:
    """Raise NoTokenizer unless the files of these names can hold a tokenizer."""
    if not any(names >= files for files in _TOKENIZERS):
        alone = f"; {TOKENIZER_CONFIG} alone holds no vocabulary" if TOKENIZER_CONFIG in names else ""
        raise NoTokenizer(f"It has no tokenizer: neither {TOKENIZER} nor another vocabulary{alone}.")


def check_companions(directory: Path, rows: int) -> None:
    """Check what the files beside the weights show; `rows` is how many tokens the embedding has rows for.

    Raises:
        NoTokenizer: there is no vocabulary, or it is not of its format.
        MalformedModel: another file is not of its kind, or a token that any text can hold has no row.
    """
    require_tokenizer(set(companion_names(directory)))
    for name, content in cleaned_companions(directory):
        if name == TOKENIZER:
            _check_vocabulary(parse_object(content, name), rows)


def _check_vocabulary(tokenizer: Mapping[str, Any], rows: int) -> None:
    """Raise unless each token has a row. Special ones may lack it, as that for images does in models of text alone."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not vocabulary or not isinstance(added, list):
        raise NoTokenizer(f"{TOKENIZER} holds no vocabulary where it should.")
    numbered = vocabulary if isinstance(vocabulary, dict) else {}
    if any(type(number) is not int or number < 0 for number in numbered.values()):
        raise NoTokenizer(f"{TOKENIZER} numbers its vocabulary with something else than whole numbers.")
    beyond = {token: number for token, number in numbered.items() if number >= rows}
    special = set()
    for token in added:
        match token:
            case {"content": str(content), "id": int(number), **rest}:
                if rest.get("special"):
                    special.add(content)
                elif number >= rows:
                    beyond[content] = number
            case _:
                raise NoTokenizer(f"{TOKENIZER} does not describe its added tokens as it should.")
    beyond = {token: number for token, number in beyond.items() if token not in special}
    if beyond or (isinstance(vocabulary, list) and len(vocabulary) > rows):
        token, number = next(iter(beyond.items()), ("its last one", len(vocabulary) - 1))
        raise MalformedModel(
            f"{TOKENIZER} has the token {token!r} with the number {number}, but the embedding has {rows} rows; "
            "resize the model to its tokenizer, or take the tokens out that were added."
        )


def cleaned_companions(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name of each companion and what of its content may travel into the package, one file at a time.

    Raises:
        MalformedModel: a file is larger than its kind may be, or not of its format.
    """
    for name in companion_names(directory):
        kind = next(kind for kind in _KINDS if kind.names.fullmatch(name))
        yield name, kind.cleaned(read_bounded(directory / name, kind.largest, name), name)


def write_companions(source: Path, directory: Path) -> None:
    """Write into `directory` what may travel of the companions of the model in `source`. Raises MalformedModel."""
    for name, content in cleaned_companions(source):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
