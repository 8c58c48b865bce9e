"""Fewer blocks and narrower MLPs: what config.json says of them and how their tensors are then named. Torch-free.

Promise: the resized config is one that the architecture's own code reads, so nothing of ours is needed to open it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workers.compression.architectures import architecture_of
from workers.compression.errors import UnsupportedArchitecture


def resized_config(
    config: Mapping[str, Any], kept: Sequence[int], blocks: int, intermediate_size: int | None = None
) -> dict[str, Any]:
    """The config of the model that has only the blocks `kept` of its `blocks`, with that many hidden units per MLP.

    Every list with one entry for each block keeps the entries of the blocks that remain. A list that the file leaves to
    the library's default is not there to be edited: state it first. Raises UnsupportedArchitecture where a block
    computes something else at another place.
    """
    architecture = architecture_of(config)
    resized = dict(config)
    if intermediate_size is not None:
        resized[architecture.width_field] = intermediate_size
    if len(kept) == blocks:
        return resized
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedArchitecture(
            "No block can be removed: config.json scales attention by the block's number "
            "(scale_attn_by_inverse_layer_idx)."
        )
    # GPT-2's config may use the library's common name instead of its own.
    resized.pop("num_hidden_layers", None)
    resized[architecture.blocks_field] = len(kept)
    for field, value in config.items():
        # By name too: a list of end tokens may happen to be as long.
        if isinstance(value, list) and len(value) == blocks and "layer" in field:
            resized[field] = [value[index] for index in kept]
    if isinstance(last_full := config.get("max_window_layers"), int):
        resized["max_window_layers"] = sum(index < last_full for index in kept)
    return resized


def renumbered(name: str, prefix: str, kept: Sequence[int]) -> str:
    """The name of a module or tensor once only the blocks `kept` remain; `prefix` is the path of the blocks."""
    match = re.match(rf"{re.escape(prefix)}\.(\d+)(?=\.|$)", name)
    if match is None:
        return name
    return f"{prefix}.{kept.index(int(match[1]))}{name[match.end() :]}"


def block_of(name: str, prefix: str) -> int | None:
    """The number of the block that a module or tensor lies in; None outside the blocks."""
    match = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    return int(match[1]) if match else None
