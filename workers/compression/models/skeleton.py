"""The empty model that a checkpoint's tensors fill, and the checks that they fill it exactly.

`empty_model(config, dtype, device)` is the transformers model on the meta device, but with real buffers.
`inventory_of`, `names_in` and `check_complete` compare it with the stored tensors.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from modelpress.spec.architectures import architecture_of
from modelpress.spec.config import is_tied
from modelpress.spec.errors import MalformedModel
from modelpress.spec.headers import StoredTensor
from modelpress.spec.inventory import Inventory, inventory, weights
from workers.compression.models.layout import Layout, Sources

_FLOATING = ("F64", "F32", "F16", "BF16")


def inventory_of(
    config: dict[str, Any],
    tensors: dict[str, StoredTensor],
    skeleton: PreTrainedModel,
    replaced: Mapping[str, Mapping[str, Any]],
) -> Inventory:
    """Return the inventory with every factored matrix in its dense shape, but with the number of parameters stored.

    `replaced` maps the names of factored modules to the JSON forms of their structures.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    stored = sum(math.prod(shapes[name]) for name in weights(config, shapes).values())
    sites = tuple(f"{name}." for name in replaced)
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(sites) or name.endswith(".bias")}
    originals = {f"{name}.weight": tuple(skeleton.get_parameter(f"{name}.weight").shape) for name in replaced}
    return dataclasses.replace(inventory(config, kept | originals), total_parameters=stored)


def empty_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return the transformers model with empty weights on the meta device and real buffers (rotary frequencies).

    Raises MalformedModel where transformers cannot build it.
    """
    try:
        model = _built(config, dtype)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a stranger's config makes transformers raise anything
        raise MalformedModel(
            "transformers cannot build the model that config.json describes: "
            f"{type(error).__name__}: {str(error)[:300]}"
        ) from error
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    model.train(False).requires_grad_(False)
    return model


def _built(config: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    settings = CONFIG_MAPPING[config["model_type"]].from_dict(_with_floats(config))
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    return model


def _with_floats(value: Any) -> Any:
    """Return a value of config.json with the floats that JSON has no word for, which transformers writes as objects."""
    match value:
        case {"__float__": str(number)}:
            return float(number)
        case dict():
            return {key: _with_floats(each) for key, each in value.items()}
        case list():
            return [_with_floats(each) for each in value]
    return value


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the empty tensor `name` of the model by a real one."""
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent).load_state_dict({leaf: tensor}, assign=True, strict=False)


def release(module: nn.Module) -> None:
    """Replace the module's own parameters by empty ones; tensors that a pending gradient needs stay alive there."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))


def head_name(model: PreTrainedModel) -> str:
    """Return the module path of the output head."""
    head: nn.Module = model.get_output_embeddings()
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[head]


def names_in(skeleton: PreTrainedModel, head: str, sources: Sources) -> Sources:
    """Return the mapping keyed by the skeleton's names: releases of transformers differ in what they call an output
    head.

    `sources` maps names of the model to canonical ones; `head` is the head's canonical name.
    """
    actual = head_name(skeleton)
    return {
        actual + name.removeprefix(head) if name.startswith(f"{head}.") else name: its for name, its in sources.items()
    }


def check_complete(skeleton: PreTrainedModel, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Check that the files' tensors are those that the model needs, in name, shape and kind of number.

    Raises MalformedModel for missing, unexpected, misshapen and non-floating tensors.
    """
    stored_names, layout = weights(config, tensors), Layout.of(skeleton)
    sources = names_in(skeleton, architecture_of(config).head, layout.sources(stored_names))
    expected = skeleton.state_dict()
    if is_tied(config):
        del expected[f"{head_name(skeleton)}.weight"]
    for complaint, names in (
        ("lack {} tensors that config.json implies", expected.keys() - sources.keys()),
        ("hold {} tensors that config.json does not imply", sources.keys() - expected.keys()),
    ):
        if names:
            raise MalformedModel(f"The weights {complaint.format(len(names))}, such as {sorted(names)[0]}.")
    for name, its in sources.items():
        found = {each: tensors[stored_names[each]] for each in its}
        if (shape := merged_shape(layout, name, found)) != tuple(expected[name].shape):
            shapes = f"{list(shape)}, but config.json implies {list(expected[name].shape)}"
            raise MalformedModel(
                f"The tensor {stored_names[its[0]] if len(its) == 1 else name} has the shape {shapes}."
            )
        for each, tensor in found.items():
            if expected[name].is_floating_point() and tensor.dtype not in _FLOATING:
                raise MalformedModel(
                    f"The tensor {stored_names[each]} has the dtype {tensor.dtype}; supported are "
                    f"{', '.join(_FLOATING)}."
                )


def merged_shape(layout: Layout, name: str, sources: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the model's tensor `name` that is made from `sources`, which have a `shape` each.

    Raises MalformedModel where their shapes do not go together.
    """
    empty = {each: torch.empty(source.shape, device="meta") for each, source in sources.items()}
    try:
        return tuple(layout.merged(name, empty).shape)
    except (RuntimeError, ValueError) as error:
        raise MalformedModel(f"The tensors from which {name} is made do not go together: {error}") from error
