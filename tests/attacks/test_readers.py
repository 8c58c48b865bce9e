"""Every reader of foreign files, fed with what hypothesis makes: it returns or refuses, and fails in no other way.

The same examples are made on every run of `make test`; `make test-full` makes more, new ones each time. What was
found is kept in SEEDS.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.sources.documents import read_documents
from app.sources.gguf import read_gguf
from app.sources.gguf_errors import MalformedGguf, UnsupportedGguf
from modelpress.spec.companions import check_companions
from modelpress.spec.config import read_config
from modelpress.spec.errors import AlreadyQuantised, MalformedModel, UnsupportedArchitecture
from modelpress.spec.headers import stored_tensors
from modelpress.spec.inventory import inventory
from modelpress.spec.stored import check_agreement, check_kinds
from tests.support.checkpoints import CONFIG, SHAPES, TOKENIZER, json_bytes, safetensors_bytes, single_file, write_gguf

FEW, MANY = 60, 3000
LONGEST_MESSAGE = 2000
REFUSALS = (MalformedModel, UnsupportedArchitecture, AlreadyQuantised)

numbers = st.one_of(st.integers(-3, 100), st.sampled_from([2**31, 2**63, 10**30, -(2**63)]), st.floats())
plain = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(["llama", "\0", "\ud800"]))
values = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def edited(draw: st.DrawFn, sound: bytes) -> bytes:
    """Return sound bytes after some cuts, insertions and changes."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["cut", "insert", "change", "end"])):
            case "cut":
                del content[place : place + draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=20))
            case "change":
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case _:
                del content[place:]
    return bytes(content)


@st.composite
def replaced(draw: st.DrawFn, sound: Any) -> Any:
    """Return a JSON value in which another one stands at some place."""
    if isinstance(sound, dict) and sound and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(sound)))
        return {**sound, key: draw(replaced(sound[key]))}
    if isinstance(sound, list) and sound and draw(st.booleans()):
        place = draw(st.integers(0, len(sound) - 1))
        return [*sound[:place], draw(replaced(sound[place])), *sound[place + 1 :]]
    return draw(values)


def gguf_with(name: bytes) -> bytes:
    """Return a GGUF file with an entry of this name."""
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name)) + name + struct.pack("<II", 4, 1)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def packed(header: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with this header."""
    return struct.pack("<Q", len(header)) + header + data


entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "evil", 3]), "shape": st.lists(numbers, max_size=3)},
    optional={"data_offsets": st.lists(numbers, max_size=3)},
)
headers = st.dictionaries(st.sampled_from([*SHAPES, "__metadata__", "x"]), st.one_of(entries, values), max_size=4)
sizes = st.lists(st.sampled_from([0, 1, 4, 8, 12, 32, 2**40]), max_size=3).map(tuple)
names = st.sampled_from([*SHAPES, "lm_head.weight", "model.layers.7.x.weight", "model.layers.-1.mlp.up_proj.weight"])
fields = st.sampled_from(
    [*CONFIG, "head_dim", "rope_scaling", "pad_token_id", "quantization_config", "n_group", "num_experts", "auto_map"]
)
configs = st.dictionaries(fields, values, max_size=4).map(lambda changes: CONFIG | changes)
companions = st.sampled_from(
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "vocab.json"]
)
lines = st.one_of(
    values.map(dumped),
    st.fixed_dictionaries({"text": values}).map(dumped),
    st.fixed_dictionaries({"messages": st.lists(values, max_size=3)}).map(dumped),
    st.binary(max_size=30),
)


def read_weights(content: bytes, directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(content)
    stored_tensors(directory)


def read_index(content: bytes, directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_bytes(content)
    (directory / "model-1.safetensors").write_bytes(safetensors_bytes(SHAPES))
    stored_tensors(directory)


def read_config_file(content: bytes, directory: Path) -> None:
    (directory / "config.json").write_bytes(content)
    read_config(directory)


def read_shapes(found: tuple[dict[str, Any], dict[str, tuple[int, ...]]], directory: Path) -> None:
    config, shapes = found
    check_agreement(config, shapes, inventory(config, shapes))


def read_kinds(config: dict[str, Any], directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(safetensors_bytes(SHAPES))
    check_kinds(config, stored_tensors(directory))


def read_companion(found: tuple[str, bytes], directory: Path) -> None:
    name, content = found
    for known, sound in single_file().items():
        (directory / known).write_bytes(sound)
    (directory / name).write_bytes(content)
    check_companions(directory, 32)


def read_gguf_file(content: bytes, directory: Path) -> None:
    (directory / "model.gguf").write_bytes(content)
    read_gguf(directory / "model.gguf")


def read_text(content: bytes, directory: Path) -> None:
    (directory / "text.jsonl").write_bytes(content)
    list(read_documents(directory / "text.jsonl"))


@dataclass(frozen=True)
class Reader:
    """A reader of foreign files, what it is fed with, and how it may refuse that."""

    read: Callable[[Any, Path], None]
    fed: Callable[[Path], st.SearchStrategy[Any]]
    refusals: tuple[type[Exception], ...] = REFUSALS


READERS = {
    "weights, edited": Reader(read_weights, lambda _: edited(safetensors_bytes(SHAPES))),
    "weights, other headers": Reader(
        read_weights, lambda _: headers.map(lambda header: packed(dumped(header), bytes(8)))
    ),
    "an index": Reader(
        read_index,
        lambda _: replaced({"weight_map": dict.fromkeys(SHAPES, "model-1.safetensors"), "metadata": {}}).map(dumped),
    ),
    "a config, edited": Reader(read_config_file, lambda _: edited(json_bytes(CONFIG))),
    "a config beside shapes": Reader(
        read_shapes,
        lambda _: st.tuples(configs, st.dictionaries(names, sizes, max_size=3).map(lambda more: SHAPES | more)),
    ),
    "a config beside weights": Reader(read_kinds, lambda _: configs),
    "a companion, edited": Reader(
        read_companion, lambda _: st.tuples(companions, st.one_of(edited(json_bytes(TOKENIZER)), values.map(dumped)))
    ),
    "a tokenizer, replaced": Reader(
        read_companion, lambda _: st.tuples(st.just("tokenizer.json"), replaced(TOKENIZER).map(dumped))
    ),
    "a GGUF file": Reader(
        read_gguf_file,
        lambda directory: edited(write_gguf(directory / "sound.gguf").read_bytes()),
        (MalformedGguf, UnsupportedGguf, *REFUSALS),
    ),
    "a text": Reader(read_text, lambda _: st.lists(lines, max_size=4).map(b"\n".join), (ValueError,)),
}

SEEDS: dict[str, tuple[Any, ...]] = {
    "a config beside shapes": ((CONFIG | {"head_dim": {"": None}}, SHAPES),),
    "a GGUF file": (gguf_with(b"\0" * 300), gguf_with(b"x" * 5000)),
}
"""What a reader once failed on, by its name."""


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", READERS)
def test_a_reader_returns_or_refuses(name: str, examples: int, tmp_path: Path) -> None:
    reader = READERS[name]

    @settings(
        max_examples=examples,
        derandomize=examples == FEW,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(fed=reader.fed(tmp_path))
    def attempt(fed: Any) -> None:
        try:
            reader.read(fed, tmp_path)
        except reader.refusals as refusal:
            assert len(str(refusal)) < LONGEST_MESSAGE

    attempt()


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, seeds in SEEDS.items() for seed in seeds])
def test_what_was_found_stays_mended(name: str, seed: Any, tmp_path: Path) -> None:
    with pytest.raises(READERS[name].refusals) as refused:
        READERS[name].read(seed, tmp_path)
    assert len(str(refused.value)) < LONGEST_MESSAGE
