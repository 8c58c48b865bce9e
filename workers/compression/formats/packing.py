"""Matrices in integer codes as compressed-tensors stores them: packed integers, scales, and a part of config.json.

    packed_tensors(overlay)               # every tensor of the checkpoint
    quantisation_config(overlay)          # the `quantization_config` of config.json

vLLM computes with the integers. transformers turns them back into floating-point weights at the first forward pass.

Promise: exactly the integers and scales of the overlay are stored, and one matrix at a time is in memory.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import compressed_tensors
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
)
from torch import Tensor, nn

from modelpress.spec.codes import CODES, Code
from workers.compression.encoded import Encoded
from workers.compression.formats.files import widely_named
from workers.compression.models.skeleton import empty_model
from workers.compression.overlay import Overlay

FORMAT = "pack-quantized"

EMBEDDINGS = "Embedding"
"""The library's target for all embeddings that its config does not ignore; vLLM matches no embedding by its name."""


def packed_tensors(overlay: Overlay) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the checkpoint under its written name, always in the same order."""
    config = overlay.config()
    for name in overlay.tensor_names():
        written, encoded = overlay.written_name(name), overlay.encoding(name)
        if encoded is None:
            yield from widely_named(iter([(written, overlay.tensor(name))]), config)
        else:
            # transformers renames no head whose tensors are packed, so that it has its present name here.
            module = written.removesuffix(".weight")
            yield from ((f"{module}.{suffix}", tensor) for suffix, tensor in packed(encoded).items())


def packed(encoded: Encoded) -> dict[str, Tensor]:
    """Return the tensors that stand for a matrix [out, in], by their names inside the module."""
    integers = encoded.levels.to(torch.int16) + encoded.code.levels[0]
    return {
        "weight_packed": pack_to_int32(integers.to(torch.int8), encoded.code.bits),
        "weight_scale": encoded.units,
        "weight_shape": torch.tensor(encoded.levels.shape),
    }


def quantisation_config(overlay: Overlay) -> dict[str, Any]:
    """Return the `quantization_config` for config.json: which modules are in which code."""
    codes = {overlay.written_name(name).removesuffix(".weight"): CODES[code] for name, code in overlay.codes.items()}
    described = QuantizationConfig(
        config_groups={
            f"group_{number}": _scheme(code, targets)
            for number, (code, targets) in enumerate(_targets(overlay, codes).items())
        },
        format=FORMAT,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=_untouched(overlay.config(), codes),
    )
    return {"version": compressed_tensors.__version__, **described.model_dump(mode="json", exclude_none=True)}


def _scheme(code: Code, targets: list[str]) -> QuantizationScheme:
    """Return the library's description of a code and of the modules that are stored in it."""
    strategy = QuantizationStrategy.CHANNEL if code.group is None else QuantizationStrategy.GROUP
    weights = QuantizationArgs(num_bits=code.bits, symmetric=True, strategy=strategy, group_size=code.group)
    return QuantizationScheme(targets=targets, weights=weights, format=FORMAT)


def _targets(overlay: Overlay, codes: Mapping[str, Code]) -> dict[Code, list[str]]:
    """Return {code: targets}, with one pattern for each kind of matrix in a block."""
    prefix, embedding = overlay.inventory.block_prefix, overlay.architecture.embedding
    places: dict[tuple[Code, str], list[str]] = {}
    targets: dict[Code, list[str]] = {}
    for name, code in codes.items():
        if match := re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+)", name):
            places.setdefault((code, match[2]), []).append(match[1])
        else:
            targets.setdefault(code, []).append(EMBEDDINGS if name == embedding else f"re:.*{re.escape(name)}$")
    in_block = prefix.rpartition(".")[2]
    for (code, place), blocks in places.items():
        numbers = r"\d+" if len(blocks) == len(overlay.kept) else f"(?:{'|'.join(blocks)})"
        # The prefix of the list of blocks is left open, because engines and transformers' base model call it otherwise.
        targets.setdefault(code, []).append(rf"re:.*{in_block}\.{numbers}\.{re.escape(place)}$")
    return targets


def _untouched(config: dict[str, Any], codes: Mapping[str, Code]) -> list[str]:
    """Return the names of the linear layers and embeddings that are stored as they are, such as a tied output head.

    The config must name them, because engines expect every other one to be quantised.
    """
    model = empty_model(config, torch.float32, torch.device("cpu"))
    kinds = (nn.Linear, nn.Embedding)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and name not in codes]
