"""Remove blocks: as a step of a plan, and as the simplest smaller model, a baseline for every method.

count = blocks_to_drop(model.inventory, parameters)
parts = list(drop(model, ids, count))
"""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from modelpress.spec.inventory import Inventory
from modelpress.spec.steps import Remove
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.influence import BlockScores, next_removals, removals
from workers.compression.steps.work import Work


def run(step: Remove, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each block to remove, after the `finished` ones."""
    going = next_removals(work.model, work.ids, step.count - len(finished), step.criterion)
    yield from removal_parts(work.model.inventory, going)


def blocks_to_drop(inventory: Inventory, parameters: int) -> int:
    """Return how many blocks to remove so that the number of stored parameters is nearest to `parameters`.

    At least one block is removed and at least one remains. Blocks are assumed to be equally large.

    Raises:
        ValueError: if the model has a single block.
    """
    if inventory.blocks < 2:
        raise ValueError("no block can be removed from a model with a single block")

    def miss(count: int) -> int:
        return abs(inventory.total_parameters - sum(inventory.block_parameters[:count]) - parameters)

    return min(range(1, inventory.blocks), key=miss)


def drop(model: StreamedModel, ids: Tensor, count: int) -> Iterator[CompressedPart]:
    """Yield one part for each of `count` blocks to remove, always the one with the least `macro_influence`.

    Scores are taken on token ids [N, T], anew after every removal. Raises ValueError if no block would be left.
    """
    yield from removal_parts(model.inventory, removals(EditedModel(model), ids, count))


def removal_parts(inventory: Inventory, removals: Iterable[tuple[int, BlockScores]]) -> Iterator[CompressedPart]:
    """Yield one part for each block to remove, with the scores by which it was chosen."""
    for block, scores in removals:
        yield CompressedPart(f"{inventory.block_prefix}.{block}", removed=(block,), scores=scores.values)
