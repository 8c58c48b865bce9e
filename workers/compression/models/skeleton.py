"""The empty model that a checkpoint's tensors fill, and the checks that they fill it exactly.

`empty_model(config, dtype, device)` is the transformers model on the meta device, but with real buffers;
`inventory_of`, `names_in` and `check_complete` compare it with what is stored.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from workers.compression.spec.errors import MalformedModel
from workers.compression.spec.headers import StoredTensor
from workers.compression.spec.inventory import Inventory, inventory, weights

_FLOATING = ("F64", "F32", "F16", "BF16")


def inventory_of(
    config: dict[str, Any],
    tensors: dict[str, StoredTensor],
    skeleton: PreTrainedModel,
    replaced: Mapping[str, Mapping[str, Any]],
) -> Inventory:
    """The inventory as if every replaced matrix were there, but with the parameters that are stored."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    stored = sum(math.prod(shapes[name]) for name in weights(config, shapes).values())
    sites = tuple(f"{name}." for name in replaced)
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(sites) or name.endswith(".bias")}
    originals = {f"{name}.weight": tuple(skeleton.get_parameter(f"{name}.weight").shape) for name in replaced}
    return dataclasses.replace(inventory(config, kept | originals), total_parameters=stored)


def empty_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The transformers model with empty weights on the meta device and real buffers, such as rotary frequencies.

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
    settings = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=dtype)  # type: ignore[no-untyped-call]
    return model


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor in the place of an empty one."""
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent).load_state_dict({leaf: tensor}, assign=True, strict=False)


def release(module: nn.Module) -> None:
    """Puts empty parameters in the place of the module's own; tensors that a gradient still needs live on there."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))


def head_name(model: PreTrainedModel) -> str:
    """The path of the output head's module."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[head]


def names_in(skeleton: PreTrainedModel, head: str, stored_names: dict[str, str]) -> dict[str, str]:
    """The same mapping by the skeleton's own names: releases of transformers differ in what they call a head."""
    actual = head_name(skeleton)
    return {
        actual + name.removeprefix(head) if name.startswith(f"{head}.") else name: stored
        for name, stored in stored_names.items()
    }


def check_complete(
    skeleton: PreTrainedModel, tensors: dict[str, StoredTensor], stored_names: dict[str, str], *, tied: bool
) -> None:
    """Raises MalformedModel unless every tensor has its place and every place a tensor of its shape and kind."""
    expected = skeleton.state_dict()
    if tied:
        del expected[f"{head_name(skeleton)}.weight"]
    for complaint, names in (
        ("lack", expected.keys() - stored_names.keys()),
        ("hold, unexpectedly,", stored_names.keys() - expected.keys()),
    ):
        if names:
            raise MalformedModel(f"The weights {complaint} {len(names)} tensors, among them {sorted(names)[0]}.")
    for name, stored in stored_names.items():
        tensor = tensors[stored]
        if tensor.shape != tuple(expected[name].shape):
            shapes = f"{list(tensor.shape)}, but config.json implies {list(expected[name].shape)}"
            raise MalformedModel(f"The tensor {stored} has the shape {shapes}.")
        if expected[name].is_floating_point() and tensor.dtype not in _FLOATING:
            raise MalformedModel(
                f"The tensor {stored} is of type {tensor.dtype}; supported are {', '.join(_FLOATING)}."
            )
