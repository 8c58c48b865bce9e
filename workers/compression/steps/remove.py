"""Leave out blocks: as a step of a plan, and as the simplest smaller model, which a method has to beat at its size.

count = blocks_to_drop(model.inventory, parameters)
parts = list(drop(model, ids, count))
"""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.steps import Remove
from workers.compression.steps.influence import BlockScores, next_removals, removals
from workers.compression.steps.work import Work


def run(step: Remove, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each block that goes, behind the finished ones."""
    going = next_removals(work.model, work.ids, step.count - len(finished), step.criterion)
    yield from removal_parts(work.model.inventory, going)


def blocks_to_drop(inventory: Inventory, parameters: int) -> int:
    """Return how many blocks have to go for the stored parameters to come nearest to `parameters`: at least one, and
    never all. Blocks are alike, so it does not matter which. Raises ValueError for a model of a single block."""
    if inventory.blocks < 2:
        raise ValueError("a model of a single block has none to spare")

    def miss(count: int) -> int:
        return abs(inventory.total_parameters - sum(inventory.block_parameters[:count]) - parameters)

    return min(range(1, inventory.blocks), key=miss)


def drop(model: StreamedModel, ids: Tensor, count: int) -> Iterator[CompressedPart]:
    """Yield one part for each of `count` blocks, the least influential of those left first (`macro_influence` over
    token ids [N, T])."""
    yield from removal_parts(model.inventory, removals(EditedModel(model), ids, count))


def removal_parts(inventory: Inventory, removals: Iterable[tuple[int, BlockScores]]) -> Iterator[CompressedPart]:
    """Yield one part for each block that goes, with the scores by which it was chosen."""
    for block, scores in removals:
        yield CompressedPart(f"{inventory.block_prefix}.{block}", removed=(block,), scores=scores.values)
