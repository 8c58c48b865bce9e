"""GGUF headers, checked against the `gguf` package: it writes the files, and knows the names."""

import struct
from pathlib import Path

import gguf
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from app.sources.gguf import ARRAY, BLOCKS, MOST_STRINGS, STRING, architecture_of, read_gguf, transformers_name
from app.sources.gguf_errors import MalformedGguf, UnsupportedGguf
from app.sources.gguf_rotary import llama3_divisors
from modelpress.spec.architectures import ARCHITECTURES
from tests.support.checkpoints import CONFIG, SHAPES, write_gguf

NAMES = sorted(known.gguf.architecture for known in ARCHITECTURES.values() if known.gguf is not None)


def test_the_shapes_have_the_names_of_transformers(tmp_path: Path) -> None:
    assert read_gguf(write_gguf(tmp_path / "tiny.gguf")).shapes == SHAPES


def test_the_config_speaks_of_the_same_sizes(tmp_path: Path) -> None:
    config = read_gguf(write_gguf(tmp_path / "tiny.gguf")).config
    stated = {key: value for key, value in CONFIG.items() if key != "architectures"}
    assert {key: config[key] for key in stated} == stated


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    read = read_gguf(write_gguf(tmp_path / "tiny.gguf", head=True))
    assert read.config["tie_word_embeddings"] is False
    assert read.shapes["lm_head.weight"] == (32, 8)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_those_that_llama_cpp_gives(name: str) -> None:
    (kind,) = (kind for kind, stated in gguf.MODEL_ARCH_NAMES.items() if stated == name)
    known = gguf.get_tensor_name_map(kind, 2)
    architecture, names = architecture_of({"general.architecture": name})
    inside = [f"{architecture.blocks}.1.{module}" for module in names.block.values()]
    for module in [*names.outside.values(), *inside]:
        assert transformers_name(f"{known.get_name(module)}.weight", architecture, names) == f"{module}.weight"


def test_the_block_sizes_are_those_of_the_format() -> None:
    known = {kind.value: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in BLOCKS} == BLOCKS


def test_a_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(MalformedGguf):
            read_gguf(tmp_path / "cut.gguf")


def test_lengths_that_lie_cost_no_memory(tmp_path: Path) -> None:
    content = bytearray(write_gguf(tmp_path / "whole.gguf").read_bytes())
    content[16:24] = (2**63).to_bytes(8, "little")
    (tmp_path / "lie.gguf").write_bytes(content)
    with pytest.raises(MalformedGguf, match="count"):
        read_gguf(tmp_path / "lie.gguf")


def test_a_vocabulary_of_millions_of_empty_strings_is_refused_before_it_is_read(tmp_path: Path) -> None:
    key = b"tokenizer.ggml.tokens"
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key
    (tmp_path / "bomb.gguf").write_bytes(header + struct.pack("<IIQ", ARRAY, STRING, MOST_STRINGS + 1))
    with pytest.raises(MalformedGguf, match="lists more than"):
        read_gguf(tmp_path / "bomb.gguf")


def test_linear_scaling_of_rotary_positions_is_carried_over(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", scaling=gguf.RopeScalingType.LINEAR)
    assert read_gguf(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_yarn_is_carried_over(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", scaling=gguf.RopeScalingType.YARN)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert read_gguf(path).config["rope_scaling"] == scaling


def test_another_scaling_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", scaling=gguf.RopeScalingType.LONGROPE)
    with pytest.raises(UnsupportedGguf, match="longrope"):
        read_gguf(path)


def test_the_scaling_of_llama_3_is_found_from_its_divisors(tmp_path: Path) -> None:
    divisors = llama3_divisors(32, 500_000.0, 8.0, 8192)
    path = write_gguf(tmp_path / "tiny.gguf", divisors=divisors, theta=500_000.0)
    assert read_gguf(path).config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_the_divisors_are_those_of_transformers() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **scaling},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = [500_000.0 ** (-index / 32) for index in range(32)]
    divisors = llama3_divisors(32, 500_000.0, 8.0, 8192)
    computed = [frequency / divisor for frequency, divisor in zip(plain, divisors, strict=True)]
    assert scaled.tolist() == pytest.approx(computed, rel=1e-4)


def test_divisors_of_no_known_scaling_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", divisors=[1, 1, 2, 4, 8, 8, 8, 8])
    with pytest.raises(UnsupportedGguf, match="rope_freqs"):
        read_gguf(path)


def test_divisors_of_one_change_nothing(tmp_path: Path) -> None:
    assert "rope_scaling" not in read_gguf(write_gguf(tmp_path / "tiny.gguf", divisors=[1.0, 1.0])).config


@pytest.mark.parametrize("kind", ["bert", "none", "t5"])
def test_a_tokenizer_of_another_kind_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnsupportedGguf, match=f"'{kind}'"):
        read_gguf(write_gguf(tmp_path / "tiny.gguf", tokenizer=kind))


@pytest.mark.parametrize("split", ["smollm", "gpt-2", "qwen2"])
def test_the_way_in_which_a_vocabulary_splits_text_is_read(tmp_path: Path, split: str) -> None:
    assert read_gguf(write_gguf(tmp_path / "tiny.gguf", split=split)).split == split


def test_a_vocabulary_that_splits_text_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedGguf, match="'hieroglyphs'"):
        read_gguf(write_gguf(tmp_path / "tiny.gguf", split="hieroglyphs"))


@pytest.mark.parametrize("key", ["attention.sliding_window", "logit_scale", "attention.scale"])
def test_a_setting_that_may_change_the_computation_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsupportedGguf, match=key):
        read_gguf(write_gguf(tmp_path / "tiny.gguf", settings={f"llama.{key}": 2.0}))


def test_heads_that_rotate_in_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedGguf, match="dimension_count"):
        read_gguf(write_gguf(tmp_path / "tiny.gguf", settings={"llama.rope.dimension_count": 2}))
