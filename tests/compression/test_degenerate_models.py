"""Models with matrices of zeros, of low rank, or units that never fire, through every method."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelpress.spec.methods.kronecker import KRONECKER, KroneckerOptions
from tests.support.compression import calibration
from tests.support.models import save_tiny_model
from tests.support.planning import plan_of
from workers.compression.evaluation.fidelity import perplexity
from workers.compression.math.sensitivity import measure_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress

Tensors = dict[str, Tensor]
METHODS = ["low_rank", "svd", "width", "fusion", "width_low_rank", "kronecker"]


def expanded_block(tensors: Tensors) -> None:
    """Block expansion: the output projections of a block are zero, and the block is an identity."""
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.1.{name}.weight"].zero_()


def block_of_zeros(tensors: Tensors) -> None:
    for name in tensors:
        if ".layers.1." in name and "norm" not in name:
            tensors[name].zero_()


def projections_of_zeros(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("_proj.weight"):
            tensors[name].zero_()


def masked_units(tensors: Tensors) -> None:
    """Return the model as a pruner that masks leaves it: three quarters of the hidden units are zero."""
    for name in tensors:
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensors[name][12:] = 0
        if name.endswith("down_proj.weight"):
            tensors[name][:, 12:] = 0


KINDS: list[Callable[[Tensors], None]] = [expanded_block, block_of_zeros, projections_of_zeros, masked_units]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_compresses_it(kind: Callable[[Tensors], None], method: str, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    kind(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    assert_compressed(tmp_path, method)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_compresses_a_block_whose_units_never_fire(method: str, tmp_path: Path) -> None:
    save_tiny_model("opt", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.decoder.layers.1.fc1.bias"].fill_(-1e4)
    save_file(tensors, path, metadata={"format": "pt"})
    assert_compressed(tmp_path, method)


def assert_compressed(directory: Path, method: str) -> None:
    model, ids = StreamedModel.open(directory), calibration()
    tiled = KRONECKER.tiled(KroneckerOptions()) if method == "kronecker" else None
    measured = measure_all(model, ids, tiled=tiled)
    parts: list[CompressedPart] = []
    for _ in compress(model, plan_of(model.inventory, method, 1.2, measured), ids, parts, sensitivities=measured):
        pass
    assert torch.isfinite(torch.tensor(perplexity(EditedModel(model, parts), ids).value))
