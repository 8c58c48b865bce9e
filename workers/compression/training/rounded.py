"""Prepare a rounded model for training, and return what was trained as a part of it.

    student = rounded_student(edited)
    checkpoint = distil(teacher, student, windows, settings)
    part = tuned_part(edited, student, checkpoint.trained)

The levels of rounded matrices stay as they are. What is trained is all that a file stores as floating-point numbers:
the units of rounded matrices in the blocks, norms, biases, and matrices that are not rounded (EfficientQAT,
arXiv 2407.11062, trains the scales of a rounded model end to end). Units are trained relative to their first values,
since they are much smaller than weights. Embedding, head, experts, and units that are powers of two stay as they are
(docs/decisions, 012).

Promise: the student computes with the units as they are stored, so the part computes what the student computed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from modelpress.spec.dimensions import block_of
from workers.compression.encoded import Encoded
from workers.compression.models.edited import EditedModel
from workers.compression.parts import CompressedPart

NAME = "tuning"
"""Name of the part that the training of a rounded model leaves."""

UNITS = ".parametrizations.weight.original"
"""Suffix to a module's name, for the parameter of its relative units."""


class RelativeUnits(nn.Module):
    """The weights of a rounded matrix as a function of its units, relative to those that it was rounded with.

    Attributes:
        encoded: the matrix [out, in] as it was rounded.
        transposed: whether the module holds it as [in, out].
    """

    def __init__(self, encoded: Encoded, *, transposed: bool) -> None:
        super().__init__()
        self.encoded, self.transposed = encoded, transposed

    def forward(self, relative: Tensor) -> Tensor:
        """Return the weights for relative units [out, blocks]. The gradient ignores that units are rounded."""
        units = self.encoded.units.float() * relative
        stored = self.encoded.with_units(units.detach()).units.float()
        weight: Tensor = _Decoded.apply(units + (stored - units).detach(), self.encoded)  # type: ignore[no-untyped-call]
        return weight.T if self.transposed else weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the relative units of the matrix as it was rounded."""
        return torch.ones_like(self.encoded.units, dtype=torch.float32)

    def tuned(self, relative: Tensor) -> Encoded:
        """Return the matrix with relative units [out, blocks]."""
        return self.encoded.with_units(self.encoded.units.float() * relative.to(self.encoded.units.device))


class _Decoded(torch.autograd.Function):
    """Weights [out, in] for units [out, blocks]. It keeps levels in 8 bits, not weights, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, encoded: Encoded) -> Tensor:
        ctx.encoded = encoded
        return replace(encoded, units=units).decoded()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        encoded: Encoded = ctx.encoded
        in_steps = replace(encoded, units=torch.ones_like(encoded.units)).decoded()
        return (gradient * in_steps).view(*encoded.units.shape, -1).sum(-1), None


def rounded_student(edited: EditedModel) -> PreTrainedModel:
    """Return the rounded model as a transformers model whose parameters are all that can be trained of it."""
    student, overlay = edited.whole(), edited.overlay
    for name, parameter in list(student.named_parameters()):
        files = [overlay.original_name(each) for each in edited.in_files({name: parameter.detach()})]
        if not any(each in overlay.codes for each in files):
            continue
        encoded = overlay.encoding(files[0]) if len(files) == 1 else None
        in_block = block_of(files[0], overlay.inventory.block_prefix) is not None
        if encoded is None or encoded.code.powers or not in_block:
            _freeze(student, parameter)
            continue
        units = RelativeUnits(_on(encoded, parameter.device), transposed=overlay.is_transposed(files[0]))
        module = student.get_submodule(name.removesuffix(".weight"))
        parametrize.register_parametrization(module, "weight", units, unsafe=True)
    return student


def tuned_part(edited: EditedModel, student: PreTrainedModel, trained: Mapping[str, Tensor]) -> CompressedPart:
    """Return the trained parameters of the student `rounded_student(edited)` as one more part, named as in the
    original."""
    overlay = edited.overlay
    tensors: dict[str, Tensor] = {}
    encodings: dict[str, str] = {}
    for name, values in trained.items():
        if not name.endswith(UNITS):
            files = edited.in_files({name: values.detach()})
            tensors |= {overlay.original_name(each): tensor for each, tensor in files.items()}
            continue
        module = name.removesuffix(UNITS)
        units = cast("RelativeUnits", student.get_submodule(f"{module}.parametrizations.weight.0"))
        encoded = units.tuned(values)
        (file,) = edited.in_files({f"{module}.weight": encoded.levels})
        original = overlay.original_name(file)
        tensors |= {key: tensor.cpu() for key, tensor in encoded.tensors(original).items()}
        encodings[original] = encoded.code.name
    return CompressedPart(NAME, tensors=tensors, encodings=encodings)


def _freeze(student: PreTrainedModel, parameter: nn.Parameter) -> None:
    """Turn a parameter into a buffer in every module that holds it."""
    for module in student.modules():
        for name, held in list(module.named_parameters(recurse=False)):
            if held is parameter:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def _on(encoded: Encoded, device: torch.device) -> Encoded:
    """Return a matrix on a device."""
    scales = None if encoded.scales is None else encoded.scales.to(device)
    return replace(encoded, levels=encoded.levels.to(device), units=encoded.units.to(device), scales=scales)
