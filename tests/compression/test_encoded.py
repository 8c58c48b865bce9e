"""Matrices in a code: what they stand for, how a part holds them, and what the compressed model computes with them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelpress.spec.codes import CODES, REGISTERED, Code
from tests.support.models import save_tiny_model
from workers.compression.encoded import Encoded
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart
from workers.stages.part_files import read_part, write_part

UP = "model.layers.1.mlp.up_proj.weight"


def random_matrix(code: Code, rows: int, columns: int) -> Encoded:
    """Return a random matrix [rows, columns] in the code."""
    generator = torch.Generator().manual_seed(7)
    levels = torch.randint(len(code.levels), (rows, columns), generator=generator, dtype=torch.uint8)
    units = torch.rand(rows, columns // (code.block or columns), generator=generator).half()
    if code.scales is None:
        return Encoded(code, levels, units)
    least, most = code.scales
    groups = (rows, columns // (code.group or columns))
    return Encoded(code, levels, units, torch.randint(least, most + 1, groups, generator=generator).to(torch.int8))


@pytest.mark.parametrize("code", REGISTERED, ids=lambda code: code.name)
def test_a_weight_is_unit_times_scale_times_level(code: Code) -> None:
    encoded = random_matrix(code, rows=3, columns=512)
    row, column = 2, 300
    unit = float(encoded.units[row, column // (code.block or 512)])
    scale = 1 if encoded.scales is None else int(encoded.scales[row, column // (code.group or 512)])
    level = code.levels[int(encoded.levels[row, column])]
    assert encoded.decoded().shape == (3, 512)
    assert float(encoded.decoded()[row, column]) == pytest.approx(unit * scale * level, rel=1e-6)


def test_a_code_fits_rows_of_whole_blocks() -> None:
    assert CODES["iq4_nl"].fits(576) and not CODES["q6_k"].fits(576)
    assert CODES["int8"].fits(7)


@pytest.mark.parametrize(
    ("code", "bits"), [("int8", 8 + 16 / 1536), ("q6_k", 6.5625), ("iq4_nl", 4.5), ("mxfp4", 4.25)]
)
def test_the_bytes_of_a_matrix_count_units_and_scales(code: str, bits: float) -> None:
    assert CODES[code].bytes(576, 1536) == pytest.approx(576 * 1536 * bits / 8)


@pytest.fixture
def rounded() -> Encoded:
    return random_matrix(CODES["q8_0"], rows=48, columns=32)


def part_of(name: str, rounded: Encoded) -> CompressedPart:
    return CompressedPart("block", tensors=rounded.tensors(name), encodings={name: rounded.code.name})


def test_a_part_file_keeps_a_rounded_tensor(rounded: Encoded, tmp_path: Path) -> None:
    write_part(tmp_path / "part.safetensors", part_of(UP, rounded))
    part = read_part(tmp_path / "part.safetensors")
    assert part.encodings == {UP: "q8_0"}
    assert torch.equal(Encoded.read(part.tensors, UP, CODES["q8_0"]).decoded(), rounded.decoded())


def test_an_overlay_gives_a_rounded_tensor_as_stored_and_decoded(rounded: Encoded, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "llama")
    overlay = Overlay.open(tmp_path / "llama", [part_of(UP, rounded)])
    encoded = overlay.encoding(UP)
    assert encoded is not None and torch.equal(encoded.levels, rounded.levels)
    assert torch.equal(overlay.tensor(UP), rounded.decoded())
    assert overlay.codes == {UP: "q8_0"}
    assert overlay.shapes[UP] == (48, 32)
    assert overlay.encoding("model.norm.weight") is None
    assert list(overlay.tensor_names()).count(UP) == 1


def test_a_later_part_takes_the_place_of_a_rounded_tensor(rounded: Encoded, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "llama")
    later = CompressedPart("trained", tensors={UP: torch.ones(48, 32)})
    overlay = Overlay.open(tmp_path / "llama", [part_of(UP, rounded), later])
    assert overlay.encoding(UP) is None and torch.equal(overlay.tensor(UP), torch.ones(48, 32))


def test_the_edited_model_computes_with_decoded_weights(rounded: Encoded, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "llama")
    original = StreamedModel.open(tmp_path / "llama")
    edited = EditedModel(original, [part_of(UP, rounded)])
    assert torch.equal(edited.whole().get_parameter(UP), rounded.decoded())
    plain = EditedModel(original, [CompressedPart("block", tensors={UP: rounded.decoded()})])
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(output(edited, hidden), output(plain, hidden))


def output(model: EditedModel, hidden: Tensor) -> Tensor:
    with model.block(1) as block, torch.no_grad():
        return model.run(block, 1, hidden)


def test_a_matrix_stored_transposed_is_encoded_as_rows_of_outputs(tmp_path: Path) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    save_tiny_model("gpt2", tmp_path / "gpt2")
    encoded = random_matrix(CODES["q8_0"], rows=128, columns=32)
    overlay = Overlay.open(tmp_path / "gpt2", [part_of(name, encoded)])
    assert overlay.shapes[name] == (32, 128)
    assert torch.equal(overlay.tensor(name), encoded.decoded().T)
    assert overlay.inventory.total_parameters == overlay.original.inventory.total_parameters
