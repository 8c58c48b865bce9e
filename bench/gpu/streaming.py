"""Block streaming of models of random weights: whether the card computes while the next block is read."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu.measures import TERA, product_tflops
from bench.gpu.results import Figures
from bench.gpu.setting import Setting, Shape
from bench.gpu.work import Timed, compressed_by, peak_of
from bench.race import now
from modelpress.spec.inventory import Inventory
from workers.compression.models.streamed import StreamedModel


def streamed_middle(setting: Setting, found: Figures) -> None:
    """Measure block streaming and compression of a model of 1.1 billion parameters."""
    _stream(setting, setting.sizes.middle, found)
    _compress(setting, setting.sizes.middle, found)


def streamed_large(setting: Setting, found: Figures) -> None:
    """Measure block streaming of some blocks of a model of 7 billion parameters."""
    _stream(setting, setting.sizes.large, found)


def compressed_large(setting: Setting, found: Figures) -> None:
    """Measure the compression of a few blocks of a model of 7 billion parameters."""
    _compress(setting, replace(setting.sizes.large, blocks=2), found)


@torch.no_grad()
def _stream(setting: Setting, shape: Shape, found: Figures) -> None:
    started = now()
    directory = setting.random_model(shape)
    found["writing_seconds"] = now() - started
    ids = setting.windows(*setting.sizes.calibration, shape.vocabulary)
    ceiling = product_tflops(setting, setting.dtype, setting.sizes.matrix)
    model = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype)
    block_parameters = _parameters(model.inventory)
    found["block_bytes"] = block_parameters * setting.dtype.itemsize
    forward = 2 * block_parameters * ids.numel() * model.inventory.blocks
    found["first_pass_busy_seconds"], found["first_pass_seconds"] = _pass(model, ids)
    with peak_of(setting.device, found, "forward_peak_bytes"):
        busy, wall = _pass(model, ids)
    found.add(
        {
            "tokens_per_second_and_block": ids.numel() * model.inventory.blocks / wall,
            "tflops": forward / wall / TERA,
            "share_of_the_product": forward / wall / TERA / ceiling,
            "busy_share": busy / wall,
        }
    )
    found["reading_gb_per_second"] = _reading(model) / 1e9
    model.ahead = None
    found["seconds_without_reading_ahead_over_with"] = _pass(model, ids)[1] / wall


def _reading(model: StreamedModel) -> float:
    """Return the bytes per second at which blocks come from the files to the device, while nothing computes."""
    started = now()
    size = 0
    for index in model.kept:
        with model.block(index) as block:
            size += sum(tensor.nbytes for tensor in block.state_dict().values())
    return size / (now() - started)


def _pass(model: StreamedModel, ids: Tensor) -> tuple[float, float]:
    """Pass token ids through all blocks; return the seconds in which blocks computed, and those from first to last.

    The embedding, which a whole model would read once for many blocks, is not counted.
    """
    with model.embedder() as embed:
        states = [embed(some) for some in torch.split(ids, 8)]
    spans = []
    started = now()
    for index in model.kept:
        with model.block(index) as block:
            begun = _mark(model.device)
            states = [model.run(block, index, hidden) for hidden in states]
            spans.append((begun, _mark(model.device)))
    wall = now() - started
    return float(sum(begun.elapsed_time(ended) for begun, ended in spans)) / 1e3, wall


class _HostMark:
    """A moment on the clock of a CPU, with the method of CUDA's events."""

    def __init__(self) -> None:
        self.at = now()

    def elapsed_time(self, other: "_HostMark") -> float:
        return 1e3 * (other.at - self.at)


def _mark(device: torch.device) -> Any:
    """Return the moment in which the device has done all that it was given so far."""
    if device.type != "cuda":
        return _HostMark()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _compress(setting: Setting, shape: Shape, found: Figures) -> None:
    """Time the compression by low rank, block by block."""
    directory = setting.random_model(shape)
    ids = setting.windows(*setting.sizes.calibration, shape.vocabulary)
    model = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype)
    found["one_block_and_moments_bytes"] = _block_and_moments(model.inventory, setting.dtype)
    with peak_of(setting.device, found, "compression_peak_bytes"):
        compressed_by(model, "low_rank", setting.sizes.ratio, ids, timed=Timed(found))
    per_block = float(found["compress_seconds"]) / model.inventory.blocks
    found["calibration_tokens_per_second_and_block"] = ids.numel() / per_block


def _block_and_moments(inventory: Inventory, dtype: torch.dtype) -> int:
    """Return the bytes of a block and of both moments of the inputs of its sites, those of one input counted once."""
    sites = inventory.sites_of(0)
    widths = {(site.name.rpartition(".")[0], site.in_features) for site in sites}
    return _parameters(inventory) * dtype.itemsize + sum(2 * 4 * width**2 for _, width in widths)


def _parameters(inventory: Inventory) -> int:
    """Return the weights of the matrices of one block."""
    return sum(site.out_features * site.in_features for site in inventory.sites_of(0))
