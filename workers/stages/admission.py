"""Refuse a job that cannot fit into its card's memory, before the stages that would find out after hours.

Counted is only what has to be there at one time whatever else happens, without activations: a job that is admitted may
still run out of memory, but none is refused that would have fitted.
"""

from dataclasses import dataclass

from modelpress.contract.codes import FailureCode
from modelpress.contract.distillation import Distillation
from modelpress.spec.inventory import Inventory
from modelpress.spec.plan import Plan
from workers.messages import AttemptFailed
from workers.stages import compute, memory
from workers.stages.context import Context

FULL = 4
"""Bytes of a weight in float32, as the student has them."""

TRAINED = 4 + 8
"""Bytes that a trained weight takes besides: its gradient, and both moments of AdamW."""

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


def demands(inventory: Inventory, plan: Plan, distillation: Distillation | None, itemsize: int) -> list[Demand]:
    """Return the least memory of each part of a job whose model has `itemsize` bytes a weight."""
    block = max(inventory.block_parameters) * itemsize
    widest = max((site.in_features for site in inventory.sites), default=0)
    found = [Demand("compressing a block", block + FULL * widest**2, "choose a smaller model")]
    # Each process of a sharded training holds only a share.
    if distillation is not None and not distillation.sharded:
        trained = TRAINED if distillation.trainable == "all" else 0
        size = inventory.total_parameters * itemsize + plan.parameters_after * (FULL + trained)
        remedy = "leave the distillation out, set its `trainable` to 'norms', shard it over several GPUs with `sharded`"
        found.append(Demand("the distillation, with the original and the student in memory,", size, remedy))
    return found


def admit(context: Context, inventory: Inventory, plan: Plan) -> None:
    """Check that a card has the memory that the job needs at least. Beside a CPU, which can swap, all are admitted.

    Raises:
        AttemptFailed: it has not.
    """
    device = compute.device(context)
    if device.type != "cuda":
        return
    free = memory.left_on_gpu(device)
    for demand in demands(inventory, plan, context.assignment.recipe.distillation, compute.dtype(device).itemsize):
        if demand.bytes > free:
            raise AttemptFailed(
                FailureCode.OUT_OF_MEMORY,
                f"{demand.what} needs at least {demand.bytes / GIB:.1f} GiB on the GPU, where {free / GIB:.1f} GiB are "
                f"free; {demand.remedy}, or take a larger GPU",
            )
