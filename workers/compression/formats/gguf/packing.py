"""Pack matrices as ggml's block types store them, and floating-point tensors in its types.

    packed = pack(encoded)                # uint8 [rows, bytes of a row], exactly the weights that `encoded` stands for
    TYPES[encoded.code.name]              # the number of the type

Layouts of blocks are facts of the file format: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor

from workers.compression.encoded import Encoded

Bytes = NDArray[np.uint8]
Scales = NDArray[np.int8]

TYPES: Mapping[str, Type] = {
    "q8_0": Type.Q8_0,
    "q6_k": Type.Q6_K,
    "q5_0": Type.Q5_0,
    "iq4_nl": Type.IQ4_NL,
    "iq4_xs": Type.IQ4_XS,
    "mxfp4": Type.MXFP4,
    "q4_0": Type.Q4_0,
    "q3_k": Type.Q3_K,
}
"""ggml's type of each code of `spec.codes` that it has."""

PLAIN: Mapping[torch.dtype, Type] = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}
"""ggml's type of each floating-point dtype."""


def pack(encoded: Encoded) -> Bytes:
    """Return the bytes of a matrix [rows, bytes of a row]. Raises KeyError for a code that ggml does not have."""
    rows = encoded.levels.shape[0]
    block = encoded.code.block
    if block is None:
        raise KeyError(encoded.code.name)
    levels = encoded.levels.cpu().numpy().reshape(-1, block)
    scales = np.zeros(0, np.int8) if encoded.scales is None else encoded.scales.cpu().numpy()
    packed = _PACKERS[encoded.code.name](levels, _bytes(encoded.units.reshape(-1, 1)), scales.reshape(len(levels), -1))
    return packed.reshape(rows, -1)


def floats(tensor: Tensor) -> Bytes:
    """Return the bytes of a floating-point tensor, with the last dimension in bytes."""
    return _bytes(tensor)


def _bytes(tensor: Tensor) -> Bytes:
    found: Bytes = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return found


def _joined(*pieces: NDArray[np.generic]) -> Bytes:
    """Return each block's pieces one after the other."""
    return np.concatenate([np.ascontiguousarray(piece).view(np.uint8) for piece in pieces], axis=-1)


def _nibbles(levels: Bytes) -> Bytes:
    """Return groups of 32 levels below 16 as 16 bytes: the first half of a group in the low bits, the second above."""
    groups = levels.reshape(len(levels), -1, 2, 16)
    packed: Bytes = groups[:, :, 0] | groups[:, :, 1] << np.uint8(4)
    return packed.reshape(len(levels), -1)


def _q8_0(levels: Bytes, units: Bytes, scales: Scales) -> Bytes:
    return _joined(units, (levels.astype(np.int16) - 128).astype(np.int8))


def _in_nibbles(levels: Bytes, units: Bytes, scales: Scales) -> Bytes:
    return _joined(units, _nibbles(levels))


def _q5_0(levels: Bytes, units: Bytes, scales: Scales) -> Bytes:
    return _joined(units, np.packbits(levels >> 4, axis=-1, bitorder="little"), _nibbles(levels & np.uint8(15)))


def _mxfp4(levels: Bytes, units: Bytes, scales: Scales) -> Bytes:
    # A bfloat16 without its mantissa, and one more, because ggml halves the unit of levels that it doubles.
    exponents = (units.view(np.uint16) >> 7) + 1
    numbers = np.concatenate([np.arange(15, 8, -1), np.arange(8)]).astype(np.uint8)
    return _joined(exponents.astype(np.uint8), _nibbles(numbers[levels]))


def _iq4_xs(levels: Bytes, units: Bytes, scales: Scales) -> Bytes:
    shifted = (scales.astype(np.int16) + 32).astype(np.uint8)
    low, high = shifted & 15, (shifted >> 4).astype(np.uint16)
    above = (high << (2 * np.arange(8, dtype=np.uint16))).sum(axis=-1, dtype=np.uint16, keepdims=True)
    return _joined(units, above, low[:, 0::2] | low[:, 1::2] << 4, _nibbles(levels))


def _q6_k(levels: Bytes, units: Bytes, scales: Scales) -> Bytes:
    quarters = levels.reshape(-1, 2, 4, 32)  # each half of a block in quarters of 32 weights
    low, high = quarters & 15, quarters >> 4
    lower = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=-1)
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return _joined(lower.reshape(-1, 128), upper.reshape(-1, 64), scales, units)


def _q3_k(levels: Bytes, units: Bytes, scales: Scales) -> Bytes:
    quarters = levels.reshape(-1, 2, 4, 32)
    low, high = quarters & 3, levels.reshape(-1, 8, 32) >> 2
    lower = low[:, :, 0] | low[:, :, 1] << 2 | low[:, :, 2] << 4 | low[:, :, 3] << 6
    mask = np.packbits(high, axis=1, bitorder="little").reshape(-1, 32)
    shifted = (scales.astype(np.int16) + 32).astype(np.uint8)
    nibbles = shifted[:, :8] & 15 | (shifted[:, 8:] & 15) << 4
    pairs = (shifted >> 4).reshape(-1, 4, 4)
    above = pairs[:, 0] | pairs[:, 1] << 2 | pairs[:, 2] << 4 | pairs[:, 3] << 6
    return _joined(mask, lower.reshape(-1, 64), nibbles, above, units)


_PACKERS: Mapping[str, Callable[[Bytes, Bytes, Scales], Bytes]] = {
    "q8_0": _q8_0,
    "q6_k": _q6_k,
    "q5_0": _q5_0,
    "iq4_nl": _in_nibbles,
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
    "q4_0": _in_nibbles,
    "q3_k": _q3_k,
}
