"""Write a plain model with the matrices of its blocks quantised to integers, in the compressed-tensors format.

    Int4().write(overlay, directory)             # spec.quantisation decides each matrix's grid
    Int4().restore(directory, measurable)        # an ordinary checkpoint of the rounded weights

Weights are rounded to the nearest step by the library's own quantiser. The format is made for vLLM, which computes with
the integers; that was not tested. transformers opens the directory if compressed-tensors is installed, without any code
of ours, and turns the integers back into floating-point weights at the first forward pass. The library is an optional
extra, so this module is imported only when it is needed.

Promise: one matrix at a time is in memory, and a directory appears complete or not at all.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import compressed_tensors
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
)
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.utils import match_name
from safetensors import safe_open
from torch import Tensor, nn

from workers.compression.companions import copy_companions
from workers.compression.formats.files import complete, write_json, write_weights
from workers.compression.formats.writer import Writer, Written
from workers.compression.models.skeleton import empty_model
from workers.compression.overlay import Overlay
from workers.compression.spec.config import read_config
from workers.compression.spec.headers import stored_tensors
from workers.compression.spec.quantisation import Grid, NotQuantisable, grids

FORMAT = "pack-quantized"
PACKED = ("weight_packed", "weight_scale", "weight_shape")
"""The suffixes of the tensors that the format stores instead of a weight."""

EVERY_LINEAR = "Linear"
"""The library's target for all linear modules that its config does not ignore."""


class CompressedTensors(Writer):
    """Writer of plain models with quantised matrices. Subclasses name their `scheme` in `spec.quantisation`."""

    scheme: ClassVar[str]

    def write(self, overlay: Overlay, destination: Path) -> Written:
        """Write the model as `Writer.write` says. Raises NotQuantisable if it has factored layers or no matrix fits."""
        if overlay.is_factored:
            raise NotQuantisable("factored layers cannot be rounded to integers; write the format 'safetensors'")
        config, named = overlay.config(), overlay.written_name
        rounding = {f"{named(site)}.weight": grid for site, grid in grids(overlay.inventory, self.scheme).items()}
        with complete(destination) as directory:
            entries = write_weights(lambda: _tensors(overlay, rounding), directory)
            write_json(
                directory / "config.json", config | {"quantization_config": _quantisation_config(config, rounding)}
            )
            copy_companions(overlay.original.directory, directory)
        return Written(destination, overlay.inventory.total_parameters, sum(entry.bytes for entry in entries))

    def restore(self, written: Path, destination: Path) -> None:
        """Write the dequantised weights in float32 as an ordinary checkpoint that can be evaluated.

        Rounded to the dtype in which transformers opens `written`, they are exactly the weights it computes with.
        Raises FileExistsError if `destination` exists.
        """
        config = read_config(written)
        described = QuantizationConfig.model_validate(config.pop("quantization_config"))
        schemes = list(described.config_groups.values())
        stored = {name: (name, tensor.file) for name, tensor in stored_tensors(written).items()}
        with complete(destination) as directory:
            write_weights(lambda: _restored_tensors(stored, schemes), directory)
            write_json(directory / "config.json", config)


class Int8(CompressedTensors):
    """Writer of 8-bit integers with one scale per row."""

    scheme = "int8"


class Int4(CompressedTensors):
    """Writer of 4-bit integers with one scale per group of a row."""

    scheme = "int4"


def _read(stored: tuple[str, Path]) -> Tensor:
    """Read the tensor of a (name, file)."""
    name, path = stored
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _restored_tensors(
    stored: Mapping[str, tuple[str, Path]], schemes: Sequence[QuantizationScheme]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the restored checkpoint; `stored` maps written names to (name, file)."""
    for name, place in stored.items():
        module, _, suffix = name.rpartition(".")
        if suffix == "weight_packed":
            state = {suffix: _read(stored[f"{module}.{suffix}"]) for suffix in PACKED}
            state["weight_scale"] = state["weight_scale"].float()
            restored: dict[str, Tensor] = _compressor().decompress(state, _scheme_of(module, schemes))
            yield f"{module}.weight", restored["weight"]
        elif suffix not in PACKED:
            yield name, _read(place)


def _scheme_of(module: str, schemes: Sequence[QuantizationScheme]) -> QuantizationScheme:
    """Return the first scheme whose targets include the module."""
    return next(
        scheme
        for scheme in schemes
        if any(target == EVERY_LINEAR or match_name(module, target) for target in scheme.targets)
    )


def _tensors(overlay: Overlay, rounding: Mapping[str, Grid]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the quantised checkpoint, always in the same order."""
    for name, tensor in overlay.tensors():
        if name not in rounding:
            yield name, tensor
            continue
        module = name.removesuffix(".weight")
        for suffix, stored in _rounded(tensor, rounding[name]).items():
            yield f"{module}.{suffix}", stored


def _rounded(weight: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Return the tensors by which the format stores a matrix [out, in]: packed integers, scales in its dtype, shape."""
    exact = weight.float()
    groups = exact.reshape(exact.shape[0], -1, grid.group or exact.shape[1])
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), _arguments(grid))
    # Scales are rounded first, so that the integers are computed with the scales that are stored.
    stored_scale = scale.to(weight.dtype)
    state = {"weight": exact, "weight_scale": stored_scale.float(), "weight_zero_point": zero_point}
    packed: dict[str, Tensor] = _compressor().compress(state, _scheme(grid, []))
    return packed | {"weight_scale": stored_scale}


def _compressor() -> Any:
    return BaseCompressor.get_value_from_registry(FORMAT)


def _arguments(grid: Grid) -> QuantizationArgs:
    strategy = QuantizationStrategy.CHANNEL if grid.group is None else QuantizationStrategy.GROUP
    return QuantizationArgs(num_bits=grid.bits, symmetric=True, strategy=strategy, group_size=grid.group)


def _scheme(grid: Grid, targets: list[str]) -> QuantizationScheme:
    return QuantizationScheme(targets=targets, weights=_arguments(grid), format=FORMAT)


def _quantisation_config(config: dict[str, Any], rounding: Mapping[str, Grid]) -> dict[str, Any]:
    """Return the `quantization_config` for config.json."""
    grids_of = {name.removesuffix(".weight"): grid for name, grid in rounding.items()}
    described = QuantizationConfig(
        config_groups={
            f"group_{number}": _scheme(grid, targets)
            for number, (grid, targets) in enumerate(_targets(grids_of).items())
        },
        format=FORMAT,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=_untouched(config, grids_of.keys()),
    )
    return {"version": compressed_tensors.__version__, **described.model_dump(mode="json", exclude_none=True)}


def _targets(grids_of: Mapping[str, Grid]) -> dict[Grid, list[str]]:
    """Return {grid: targets}: all linear modules if there is one grid, or a pattern per module name in a block."""
    if len(set(grids_of.values())) == 1:
        return {next(iter(grids_of.values())): [EVERY_LINEAR]}
    targets: dict[Grid, list[str]] = {}
    for name, grid in grids_of.items():
        place = re.sub(r"^.*?\.\d+\.", "", name)
        pattern = rf"re:.*\.\d+\.{re.escape(place)}$"
        if pattern not in targets.setdefault(grid, []):
            targets[grid].append(pattern)
    return targets


def _untouched(config: dict[str, Any], rounded: Collection[str]) -> list[str]:
    """Return the names of the linear layers that are not quantised, such as the output head.

    The config must name them, because the library expects all other linear layers to be quantised.
    """
    model = empty_model(config, torch.float32, torch.device("cpu"))
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if name not in rounded]
