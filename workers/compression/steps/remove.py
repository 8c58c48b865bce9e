"""The simplest smaller model: the original without some of its blocks, and nothing put in their place.

    count = blocks_to_drop(model.inventory, parameters)
    parts = list(drop(model, ids, count))

It is what a method has to beat at the same size.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.spec.inventory import Inventory
from workers.compression.steps.influence import BlockScores, removals


def blocks_to_drop(inventory: Inventory, parameters: int) -> int:
    """How many blocks have to go for the stored parameters to come nearest to those wanted: at least one, and never
    all. Blocks are alike, so it does not matter which. Raises ValueError for a model of a single block."""
    if inventory.blocks < 2:
        raise ValueError("a model of a single block has none to spare")

    def miss(count: int) -> int:
        return abs(inventory.total_parameters - sum(inventory.block_parameters[:count]) - parameters)

    return min(range(1, inventory.blocks), key=miss)


def drop(model: StreamedModel, ids: Tensor, count: int) -> Iterator[CompressedPart]:
    """Yields one part for each of `count` blocks, the least influential of those left first (`macro_influence` over
    token ids [N, T])."""
    yield from removal_parts(model.inventory, removals(EditedModel(model), ids, count))


def removal_parts(
    inventory: Inventory, removals: Iterable[tuple[int, BlockScores]], start: int = 0
) -> Iterator[CompressedPart]:
    """One part for each block that goes, numbered from `start` on, with the scores by which it was chosen."""
    for index, (block, scores) in enumerate(removals, start):
        name = f"{inventory.block_prefix}.{block}"
        yield CompressedPart(index, name, {}, {}, {}, removed=(block,), scores=scores.values)
