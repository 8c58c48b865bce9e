"""What a config can state about smaller models of its type, shown by building them and comparing what they compute."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modelpress.spec.architectures.architecture import Architecture, HeadMatrices
from workers.compression.inferred.block import same
from workers.compression.inferred.tiny import GROUPS, HEAD, HEADS, changed, random_model, run
from workers.compression.inferred.trial import Trial, changed_tokens, is_matrix, push_unit

Kept = Mapping[str, tuple[int, Tensor]]
"""{tensor: (dimension, the places along it that are kept)}."""


def width_field(model: PreTrainedModel, found: Architecture) -> str | None:
    """Return the config's name for the number of hidden units of an MLP; None if it cannot state fewer."""
    units = _weight(model, found, 0, found.mlp.leaving).shape[0 if found.layout == "conv1d" else 1]
    kept = torch.arange(0, units - 7)
    for field, value in model.config.to_dict().items():
        if value is not None and not (type(value) is int and value == units):
            continue
        smaller = _built(model.config, **{field: len(kept)})
        if smaller is not None and _computes_the_rest(
            model, smaller, _narrower(model, found, units, kept), found.mlp.leaving
        ):
            return str(field)
    return None


def _narrower(model: PreTrainedModel, found: Architecture, units: int, kept: Tensor) -> Kept:
    """Return what is kept of the tensors where an MLP keeps the units `kept`."""
    rows = torch.cat([kept + units * number for number in range(found.mlp.stacked)])
    out, into = (1, 0) if found.layout == "conv1d" else (0, 1)
    chosen: dict[str, tuple[int, Tensor]] = {}
    for prefix, block in _blocks(model, found):
        for name in found.mlp.entering:
            chosen[f"{prefix}{name}.weight"] = out, rows
            if cast("Any", block.get_submodule(name)).bias is not None:
                chosen[f"{prefix}{name}.bias"] = 0, rows
        chosen[f"{prefix}{found.mlp.leaving}.weight"] = into, kept
    return chosen


def fewer_heads(model: PreTrainedModel, found: Architecture, trial: Trial) -> HeadMatrices | None:
    """Return the projections of the heads; None unless the config can state fewer heads and they are understood."""
    stated = model.config.to_dict()
    heads, groups = stated.get("num_attention_heads"), stated.get("num_key_value_heads")
    groups = heads if groups is None else groups
    if heads != HEADS or groups not in (GROUPS, HEADS) or found.layout != "linear" or trial.hidden.shape[1] < 3:
        return None
    each = heads // groups
    left = groups // 2
    smaller = _built(
        model.config, num_attention_heads=each * left, num_key_value_heads=left, head_dim=stated.get("head_dim", HEAD)
    )
    roles = _roles(found, trial)
    if smaller is None or roles is None:
        return None
    size = _weight(model, found, 0, roles.queries).shape[0] // heads
    queries, shared = torch.arange(each * left * size), torch.arange(left * size)
    chosen: dict[str, tuple[int, Tensor]] = {}
    for prefix, block in _blocks(model, found):
        for name, rows in ((roles.queries, queries), (roles.keys, shared), (roles.values, shared)):
            chosen[f"{prefix}{name}.weight"] = 0, rows
            if cast("Any", block.get_submodule(name)).bias is not None:
                chosen[f"{prefix}{name}.bias"] = 0, rows
        chosen[f"{prefix}{found.attention.leaving}.weight"] = 1, queries
    if not _computes_the_rest(model, smaller, chosen, found.attention.leaving):
        return None
    odd = {"num_attention_heads": 3 * each, "num_key_value_heads": 3, "head_dim": size}
    return HeadMatrices(roles.queries, roles.keys, roles.values, divides_width=_built(model.config, **odd) is None)


def _roles(found: Architecture, trial: Trial) -> HeadMatrices | None:
    """Return which layers make queries, keys and values.

    A query changes what the attention's last projection reads in its own token alone; a value changes it in proportion.
    """
    leaving, token = found.attention.leaving, 1
    plain = trial.entering(leaving)
    queries, keys, values = list[str](), list[str](), list[str]()
    for call in trial.calls():
        if not is_matrix(call.module) or call.name in (*found.mlp.sites, leaving):
            continue
        once, twice = (trial.entering(leaving, {call.name: push_unit(0, size, token)}) - plain for size in (1.0, 2.0))
        if changed_tokens(once, torch.zeros_like(once)) <= {token}:
            queries.append(call.name)
        else:
            (values if same(twice, 2 * once) else keys).append(call.name)
    if not len(queries) == len(keys) == len(values) == 1:
        return None
    return HeadMatrices(queries[0], keys[0], values[0])


@torch.no_grad()
def _computes_the_rest(model: PreTrainedModel, smaller: PreTrainedModel, kept: Kept, last: str) -> bool:
    """Return whether the smaller model, with the weights that are kept, computes what the model does whose projections
    `last` do not read what is not kept."""
    weights = model.state_dict()
    left = {name: tensor.index_select(*kept[name]) if name in kept else tensor for name, tensor in weights.items()}
    room = smaller.state_dict()
    if {name: tensor.shape for name, tensor in left.items()} != {name: tensor.shape for name, tensor in room.items()}:
        return False
    smaller.load_state_dict(left)
    silenced = copy.deepcopy(model)
    for name, (dimension, places) in kept.items():
        if name.endswith(f".{last}.weight"):
            parameter = silenced.get_parameter(name)
            gone = torch.ones(parameter.shape[dimension], dtype=torch.bool)
            gone[places] = False
            parameter.index_fill_(dimension, gone.nonzero().flatten(), 0)
    return same(run(smaller), run(silenced))


def bears_integers(model: PreTrainedModel, found: Architecture) -> bool:
    """Return whether the model's code calls its linear layers and reads nothing of them."""
    wrapped = copy.deepcopy(model)
    for _, block in _blocks(wrapped, found):
        for name, module in list(block.named_modules()):
            if is_matrix(module) and name not in found.whole:
                parent, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(parent), leaf, _Opaque(module))
    try:
        return same(run(wrapped), run(model))
    except AttributeError:
        return False


class _Opaque(nn.Module):
    """A linear layer of which nothing can be read."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._called = [module]

    def forward(self, states: Tensor) -> Tensor:
        """Return what the layer does."""
        written: Tensor = self._called[0](states)
        return written


def _built(config: PreTrainedConfig, **fields: Any) -> PreTrainedModel | None:
    """Return a model of the config with other values of some fields; None if transformers builds none."""
    try:
        return random_model(changed(config, **fields))
    except Exception:  # noqa: BLE001 - transformers raises anything
        return None


def _blocks(model: PreTrainedModel, found: Architecture) -> Iterator[tuple[str, nn.Module]]:
    """Yield each block with the beginning of its tensors' names."""
    for index, block in enumerate(model.get_submodule(found.blocks).children()):
        yield f"{found.blocks}.{index}.", block


def _weight(model: PreTrainedModel, found: Architecture, index: int, name: str) -> Tensor:
    return model.get_parameter(f"{found.blocks}.{index}.{name}.weight")
