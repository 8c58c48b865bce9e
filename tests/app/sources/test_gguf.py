"""GGUF headers, checked against the `gguf` package: it writes the files, and knows the names."""

from pathlib import Path

import gguf
import pytest

from app.sources.gguf import BLOCKS, MalformedGguf, architecture_of, read_gguf, transformers_name
from tests.support.checkpoints import CONFIG, SHAPES, write_gguf
from workers.compression.spec.architectures import ARCHITECTURES

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
