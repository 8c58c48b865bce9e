"""Matrices rounded to a code in the simplest way, for tests of what is done with them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from modelpress.spec.codes import CODES, Code
from workers.compression.encoded import Encoded
from workers.compression.overlay import Original
from workers.compression.parts import CompressedPart


def rounded(weight: Tensor, code: Code) -> Encoded:
    """Return a matrix [out, in] rounded to the nearest step of a code with one group in a block."""
    groups = weight.float().view(weight.shape[0], -1, code.group or weight.shape[1])
    units = (groups.abs().amax(-1) / code.levels[-1]).to(weight.dtype)
    integers = (groups / units.float().unsqueeze(-1)).round().clamp(code.levels[0], code.levels[-1])
    return Encoded(code, (integers - code.levels[0]).view(weight.shape).to(torch.uint8), units)


def rounded_part(original: Original, codes: Mapping[str, str]) -> CompressedPart:
    """Return a part with some of an original's matrices in codes; `codes` maps names of modules to names of codes."""
    tensors: dict[str, Tensor] = {}
    for module, code in codes.items():
        name = f"{module}.weight"
        weight = original.tensor(original.names[name])
        transposed = any(site.name == module and site.layout == "conv1d" for site in original.inventory.sites)
        tensors |= rounded(weight.T if transposed else weight, CODES[code]).tensors(name)
    encodings = {f"{module}.weight": code for module, code in codes.items()}
    return CompressedPart("rounded", tensors=tensors, encodings=encodings)
