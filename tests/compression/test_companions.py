"""A package turns text into the same ids as its original, whatever class the original's files resolve to."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from modelpress.spec.errors import NoTokenizer, VerificationFailed
from tests.support.models import save_tiny_model
from tests.support.text_models import byte_tokenizer
from workers.compression.companions import open_tokenizer, sample_texts, tokenised
from workers.compression.formats.dense import Dense
from workers.compression.formats.safetensors import Safetensors
from workers.compression.formats.verification import Probe, verify_all
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Original, Overlay
from workers.compression.parts import CompressedPart

TEXT = "In 1999 there were 12345 HelloWorld items  and 2024 camelCase names; the quick brown fox don't mind 345"
SITES = {"gpt2": "transformer.h.0.mlp.c_fc"}
GROUPS = r"\p{Lu}?\p{Ll}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def byte_level(ends: str) -> Tokenizer:
    """A byte-level BPE with a pre-tokenizer of its own, as current models have."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(GROUPS), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[ends], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT] * 50, trainer)
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """A BPE over U+2581 with bytes to fall back on, as converted sentencepiece models have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    tokenizer.train_from_iterator([TEXT] * 20, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ORIGINALS: dict[str, tuple[str, Callable[[], Tokenizer], dict[str, Any]]] = {
    "mistral": ("mistral", sentencepiece_like, {"tokenizer_class": "LlamaTokenizer", "legacy": True, **SPECIAL}),
    "llama": ("llama", sentencepiece_like, {"tokenizer_class": "LlamaTokenizerFast", **SPECIAL}),
    "llama-byte-level": ("llama", lambda: byte_level("</s>"), {"tokenizer_class": "LlamaTokenizer"}),
    "distilled-qwen": ("qwen2", lambda: byte_level("</s>"), {"tokenizer_class": "LlamaTokenizerFast"}),
    "qwen-generic": ("qwen2", lambda: byte_level("</s>"), {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "qwen-no-class": ("qwen2", lambda: byte_level("<|endoftext|>"), {"model_max_length": 64}),
    "phi4-mini": ("phi3", lambda: byte_level("<|endoftext|>"), {"tokenizer_class": "GPT2Tokenizer"}),
    "gpt2-nothing-said": ("gpt2", lambda: byte_level("<|endoftext|>"), {"model_max_length": 1024}),
    "gemma2-no-class": ("gemma2", sentencepiece_like, {"padding_side": "left"}),
    "unknown-class": ("llama", lambda: byte_level("</s>"), {"tokenizer_class": "NobodysTokenizer"}),
    "extra-tokens": (
        "llama",
        sentencepiece_like,
        {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>", "<b>"], **SPECIAL},
    ),
}


def write_original(directory: Path, architecture: str, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    save_tiny_model(architecture, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def factored(directory: Path, site: str = "model.layers.0.mlp.down_proj") -> Overlay:
    """The original with one matrix factored; its package has a type of its own."""
    rows, columns = site_shape(directory, site)
    tensors = {f"{site}.first": torch.randn(2, columns), f"{site}.second": torch.randn(rows, 2)}
    part = CompressedPart(site, {site: {"kind": "low_rank", "rank": 2}}, tensors)
    return Overlay(Original.read(directory), [part])


def site_shape(directory: Path, site: str) -> tuple[int, int]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        rows, columns = file.get_slice(f"{site}.weight").get_shape()
    return (columns, rows) if site.startswith("transformer") else (rows, columns)


def opened(directory: Path) -> dict[str, Any]:
    """Return what stock transformers makes of a directory, as README opens it."""
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True, local_files_only=True)
    return tokenised(tokenizer, sample_texts(tokenizer))


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_package_and_its_dense_export_tokenise_as_the_original(name: str, tmp_path: Path) -> None:
    architecture, tokenizer, config = ORIGINALS[name]
    original = write_original(tmp_path / "original", architecture, tokenizer(), config)
    site = SITES.get(architecture, "model.layers.0.mlp.down_proj")
    package = Safetensors().write(factored(original, site), tmp_path / "package").directory
    dense = Dense().write(factored(original, site), tmp_path / "dense").directory
    expected = opened(original)
    assert opened(package) == expected
    assert opened(dense) == expected


def test_an_original_is_opened_as_stock_transformers_opens_it(tmp_path: Path) -> None:
    original = write_original(tmp_path / "original", *call(ORIGINALS["distilled-qwen"]))
    tokenizer = open_tokenizer(original)
    assert tokenised(tokenizer, sample_texts(tokenizer)) == opened(original)


def call(original: tuple[str, Callable[[], Tokenizer], dict[str, Any]]) -> tuple[str, Tokenizer, dict[str, Any]]:
    architecture, tokenizer, config = original
    return architecture, tokenizer(), config


EVIL = ["evil/repo--tok.EvilTokenizer", "evil/repo--tok.EvilTokenizer"]


@pytest.mark.parametrize("tokenizer_class", ["EvilTokenizer", "PreTrainedTokenizerFast", None])
def test_foreign_code_reaches_neither_worker_nor_client(tmp_path: Path, tokenizer_class: str | None) -> None:
    config = {"tokenizer_class": tokenizer_class, "auto_map": {"AutoTokenizer": EVIL}, "eos_token": "</s>"}
    original = write_original(tmp_path / "original", "llama", byte_level("</s>"), config)
    stated = json.loads((original / "config.json").read_text())
    stated["auto_map"] = {"AutoTokenizer": EVIL, "AutoConfig": "evil/repo--tok.EvilConfig"}
    (original / "config.json").write_text(json.dumps(stated))
    assert open_tokenizer(original).eos_token == "</s>"
    package = Safetensors().write(factored(original), tmp_path / "package").directory
    dense = Dense().write(factored(original), tmp_path / "dense").directory
    for directory in (package, dense):
        assert not [path for path in directory.rglob("*.json") if b"evil" in path.read_bytes()]


def test_named_chat_templates_are_those_of_the_original(tmp_path: Path) -> None:
    original = tmp_path / "original"
    save_tiny_model("llama", original)
    byte_tokenizer().save_pretrained(original)
    (original / "chat_template.jinja").write_text("{{ messages }}")
    (original / "additional_chat_templates").mkdir()
    (original / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    package = Safetensors().write(factored(original), tmp_path / "package").directory
    assert opened(package)["chat_template"] == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": "{}"},
        {"tokenizer.json": "{}"},
        {"tokenizer.json": '{"model": {"type": "Strange"}}'},
        {"tokenizer.json": '{"model": 7}', "tokenizer_config.json": '{"added_tokens_decoder": 7}'},
    ],
)
def test_a_tokenizer_that_does_not_open_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    save_tiny_model("llama", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(NoTokenizer):
        open_tokenizer(tmp_path)


def test_the_libraries_that_a_sentencepiece_model_needs_are_named(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    with pytest.raises(NoTokenizer, match="sentencepiece"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"padding_side": "left"}, "differs .* in its padding side"),
        ({"eos_token": "a"}, "splits 'In 1999"),
    ],
)
def test_verification_finds_a_tokenizer_that_is_not_the_original_s(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    original = write_original(
        tmp_path / "original", "llama", byte_level("</s>"), {"eos_token": "</s>", "padding_side": "right"}
    )
    package = Safetensors().write(factored(original), tmp_path / "package").directory
    tokenizer = open_tokenizer(original)
    texts = sample_texts(tokenizer)
    ids = torch.arange(8).view(1, 8)
    logits = StreamedModel.open(package).whole()(ids).logits.detach()
    probe = Probe(package, ids, logits, texts=texts, tokenised=tokenised(tokenizer, texts))
    changed = shutil.copytree(package, tmp_path / "changed")
    path = changed / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VerificationFailed, match=f"changed.*{complaint}|{complaint}.*changed"):
        verify_all([probe, replace(probe, directory=changed)])
