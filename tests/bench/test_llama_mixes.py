"""The types that llama.cpp's quantiser gives to each tensor, and the files that they make."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from bench.llama_mixes import DEFAULTS, Shape, type_of, write_mix
from tests.support.models import save_tiny_model
from workers.compression.formats.gguf import Gguf
from workers.compression.formats.gguf.opening import FILE
from workers.compression.overlay import Overlay

SHAPE = Shape(blocks=32, sharing=3)


@pytest.mark.parametrize(
    ("name", "columns", "mix", "expected"),
    [
        ("token_embd.weight", 4096, "Q4_K_M", Type.Q6_K),
        ("token_embd.weight", 576, "IQ4_NL", Type.Q8_0),
        ("blk.0.ffn_down.weight", 4096, "Q4_K_M", Type.Q6_K),
        ("blk.4.ffn_down.weight", 4096, "Q4_K_M", Type.Q4_K),
        ("blk.6.attn_v.weight", 4096, "Q5_K_M", Type.Q6_K),
        ("blk.5.attn_q.weight", 4096, "Q3_K_M", Type.Q3_K),
        ("blk.5.attn_output.weight", 4096, "Q3_K_M", Type.Q4_K),
        ("blk.0.ffn_down.weight", 4096, "Q4_0", Type.Q4_1),
        ("blk.5.attn_q.weight", 576, "Q4_K_M", Type.Q5_0),
        ("blk.5.attn_q.weight", 576, "Q2_K", Type.Q4_0),
        ("blk.5.attn_q.weight", 576, "IQ2_M", Type.IQ4_NL),
        ("blk.5.attn_norm.weight", 4096, "Q4_K_M", None),
    ],
)
def test_each_tensor_gets_the_type_that_llama_cpp_gives_it(
    name: str, columns: int, mix: str, expected: Type | None
) -> None:
    assert type_of(name, columns, mix, SHAPE, tied=True) is expected


@pytest.mark.parametrize("mix", DEFAULTS)
def test_a_mix_stays_near_the_weights_that_it_rounds(mix: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="its encoders come with llama.cpp")
    save_tiny_model("llama", tmp_path / "source", hidden_size=256, intermediate_size=256)
    Gguf().write(Overlay.open(tmp_path / "source"), tmp_path / "plain")
    importance = {"blk.0.ffn_up.weight": np.ones(256, np.float32)}
    write_mix(tmp_path / "plain" / FILE, tmp_path / FILE, mix, importance)
    plain, rounded = (
        {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
        for reader in (gguf.GGUFReader(tmp_path / "plain" / FILE), gguf.GGUFReader(tmp_path / FILE))
    )
    assert plain.keys() == rounded.keys()
    error = rounded["blk.0.ffn_up.weight"] - plain["blk.0.ffn_up.weight"]
    assert np.linalg.norm(error) < 0.4 * np.linalg.norm(plain["blk.0.ffn_up.weight"])
    np.testing.assert_array_equal(rounded["blk.0.ffn_norm.weight"], plain["blk.0.ffn_norm.weight"])
