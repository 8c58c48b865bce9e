"""Select the parameters of a student to train, and return the trained tensors as a part of the compressed model."""

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from modelpress.spec.training import Trainable
from workers.compression import structures
from workers.compression.models.edited import EditedModel
from workers.compression.parts import CompressedPart

NAME = "distillation"
"""Name of the part that a distillation leaves."""


def trainable_parameters(student: PreTrainedModel, trainable: Trainable) -> Mapping[str, nn.Parameter]:
    """Return {name: parameter} of the parameters to train; a shared one is listed once.

    Raises:
        ValueError: when the student has no parameters of that kind.
    """
    everything = dict(student.named_parameters())
    match trainable:
        case "all":
            chosen = everything
        case "norms":
            chosen = {name: parameter for name, parameter in everything.items() if parameter.ndim == 1}
        case "factors":
            layers = tuple(f"{name}." for name, module in student.named_modules() if _is_factored(module))
            chosen = {name: parameter for name, parameter in everything.items() if name.startswith(layers)}
    if not chosen:
        raise ValueError(f"the model has no {trainable} to train")
    return chosen


def trained_part(edited: EditedModel, trained: Mapping[str, Tensor]) -> CompressedPart:
    """Return the trained tensors of the student `edited.whole()` as one more part, named as in the original.

    The part holds the tensors of `trained` themselves, not copies, but for experts that files have one by one.
    """
    found = edited.in_files({name: tensor.detach() for name, tensor in trained.items()})
    tensors = {edited.overlay.original_name(name): tensor for name, tensor in found.items()}
    return CompressedPart(NAME, tensors=tensors)


def _is_factored(module: nn.Module) -> bool:
    if isinstance(module, structures.DenseLinear):
        return False
    return isinstance(module, structures.CompactLinear | structures.FactoredEmbedding)
