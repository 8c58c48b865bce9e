"""Refuse a job that cannot fit into its card's memory, before the stages that would find out after hours.

The model is looked at as soon as it is opened, with the fewest parameters that a result can have, and again when the
plan says how many it has.

Counted is only what has to be there at one time whatever else happens, without activations: a job that is admitted may
still run out of memory, but none is refused that would have fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from modelpress.contract.codes import FailureCode
from modelpress.contract.distillation import Distillation
from modelpress.spec.inventory import Inventory
from workers.messages import AttemptFailed
from workers.stages import compute, memory
from workers.stages.context import Context

FULL = 4
"""Bytes of a weight in float32, as the student has them."""

TRAINED = 4 + 8
"""Bytes that a trained weight takes besides: its gradient, and both moments of AdamW."""

UNDER = 0.9
"""Fraction of the parameters that a ratio leaves which is counted: widths and ranks are whole numbers, rounded down."""

GIB = 2**30


@dataclass(frozen=True)
class Demand:
    """The least memory that a part of a job needs.

    Attributes:
        what: the part, for people.
        bytes: the least memory.
        remedy: what to change in the recipe; completes "…, or take a larger GPU".
    """

    what: str
    bytes: int
    remedy: str


def demands(inventory: Inventory, parameters: int, distillation: Distillation | None, itemsize: int) -> list[Demand]:
    """Return the least memory of each part of a job whose model has `itemsize` bytes a weight.

    `parameters` are those of the result.
    """
    block = max(inventory.block_parameters) * itemsize
    widest = max((site.in_features for site in inventory.sites), default=0)
    found = [Demand("compressing a block", block + FULL * widest**2, "choose a smaller model")]
    # Each process of a sharded training holds only a share.
    if distillation is not None and not distillation.sharded:
        trained = TRAINED if distillation.trainable == "all" else 0
        size = inventory.total_parameters * itemsize + parameters * (FULL + trained)
        remedy = "leave the distillation out, set its `trainable` to 'norms', shard it over several GPUs with `sharded`"
        found.append(Demand("the distillation, with the original and the student in memory,", size, remedy))
    return found


def fewest_parameters(inventory: Inventory, ratios: Sequence[float]) -> int:
    """Return fewer parameters than a result of any of these ratios of bytes has; 16 bits each make the fewest."""
    return int(UNDER * inventory.total_parameters / max(ratios))


def admit(context: Context, inventory: Inventory, parameters: int) -> None:
    """Check that a card has the memory that the job needs at least. Beside a CPU, which can swap, all are admitted.

    `parameters` are those of the result.

    Raises:
        AttemptFailed: it has not.
    """
    device = compute.device(context)
    if device.type != "cuda":
        return
    free, itemsize = memory.left_on_gpu(device), compute.dtype(device).itemsize
    for demand in demands(inventory, parameters, context.assignment.recipe.distillation, itemsize):
        if demand.bytes > free:
            raise AttemptFailed(
                FailureCode.OUT_OF_MEMORY,
                f"{demand.what} needs at least {demand.bytes / GIB:.1f} GiB on the GPU, where {free / GIB:.1f} GiB are "
                f"free; {demand.remedy}, or take a larger GPU",
            )
