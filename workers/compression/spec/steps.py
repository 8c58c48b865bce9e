"""The steps that a plan is made of. Each one names and numbers the parts that it will leave.

`workers.compression.steps` has the function that carries it out.

Blocks are numbered as in the original. What a step leaves is a list of parts, each of which is finished by itself and
can be kept: a compression that was stopped goes on behind the last one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.compression.spec.dimensions import block_of
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.structures import AnyStructure

Criterion = Literal["macro_influence", "block_influence", "loss_after_removal", "trial_fusion"]
"""By what the block that goes next is chosen; `workers.compression.steps.influence` computes each."""


@dataclass(frozen=True)
class Label:
    """What a part is, for people: 'refitting block 3 of 22'. `block` is the block of the original that it is, or stands
    before; None where it is neither, or not known before it is chosen."""

    text: str
    block: int | None = None


class BaseStep(BaseModel, ABC):
    """One step of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    removes: ClassVar[bool] = False
    """Whether the step leaves blocks out."""

    @abstractmethod
    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        """Return one label for each part that the step leaves, in order.

        `inventory` is the original's; `removed` says how many of its blocks the steps before have left out.
        """

    @abstractmethod
    def summary(self) -> str:
        """Return a sentence for the model card that says what the step did."""


class Remove(BaseStep):
    """Leave out `count` blocks, one after another, the one that scores least by `criterion` each time."""

    removes: ClassVar[bool] = True

    kind: Literal["remove"] = "remove"
    count: int = Field(ge=1)
    criterion: Criterion

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        return tuple(Label(f"removing block {number} of {self.count}") for number in range(1, self.count + 1))

    def summary(self) -> str:
        return f"Removed {_blocks(self.count)}, chosen by `{self.criterion}`."


class Refit(BaseStep):
    """Refit the projections of the blocks that remain, in closed form, to the original's hidden states."""

    kind: Literal["refit"] = "refit"

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        remaining = inventory.blocks - removed
        return tuple(Label(f"refitting block {number} of {remaining}") for number in range(1, remaining + 1))

    def summary(self) -> str:
        return "Refitted the projections of the remaining blocks to the original's hidden states, in closed form."


class Absorb(BaseStep):
    """Distil each removed block into the blocks around it, over `tokens` tokens for all of them together."""

    kind: Literal["absorb"] = "absorb"
    tokens: int = Field(ge=1)

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        return tuple(
            Label(f"distilling removed block {number} of {removed} into those around it")
            for number in range(1, removed + 1)
        )

    def summary(self) -> str:
        return f"Distilled the removed blocks into those around them, over {self.tokens:,} tokens in all."


class Fuse(BaseStep):
    """Fuse `count` blocks away as published in FuseGPT (arXiv 2411.14507): each is distilled into its group of blocks
    before the next one is chosen. `tokens` counts all distillations together; None stands for 20 passes over the
    calibration text for each block."""

    removes: ClassVar[bool] = True

    kind: Literal["fuse"] = "fuse"
    count: int = Field(ge=1)
    criterion: Criterion
    tokens: int | None = Field(None, ge=1)

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        return tuple(Label(f"fusing away block {number} of {self.count}") for number in range(1, self.count + 1))

    def summary(self) -> str:
        return f"Fused {_blocks(self.count)} into their groups, chosen by `{self.criterion}`."


class Narrow(BaseStep):
    """Make every block narrower: `intermediate_size` hidden units per MLP and `key_value_heads` key/value heads remain.
    None leaves them as they are."""

    kind: Literal["narrow"] = "narrow"
    intermediate_size: int | None = Field(None, ge=1)
    key_value_heads: int | None = Field(None, ge=1)

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        remaining = inventory.blocks - removed
        return tuple(Label(f"narrowing block {number} of {remaining}") for number in range(1, remaining + 1))

    def summary(self) -> str:
        left = []
        if self.intermediate_size is not None:
            left.append(f"{self.intermediate_size} hidden units in each MLP")
        if self.key_value_heads is not None:
            left.append(f"{self.key_value_heads} key/value heads in each block")
        return f"Narrowed the blocks to {' and '.join(left)}."


class Factor(BaseStep):
    """Replace matrices by compact structures, one part after another, each fitted to what the parts before it left.

    The parts are the embedding, the blocks, and the output head where it has a matrix of its own. `structures` maps the
    module names of the sites to what they become; a site that is not named stays dense. A tied output head that is
    named is stored on its own. `compensation` says how far a site is fitted to make up for the error of the parts
    before it: 0 not at all, 1 in full. With `data_free`, the weights themselves are fitted, whatever flows through
    them.

    `first` and `last` bound the parts that the step makes: those outside are in the model already, or follow later.
    """

    kind: Literal["factor"] = "factor"
    structures: Mapping[str, AnyStructure]
    compensation: float = Field(0.5, ge=0, le=1)
    data_free: bool = False
    first: int = 0
    last: int | None = None

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        return factor_labels(inventory)[self.first : self.last]

    def summary(self) -> str:
        return f"Replaced {len(self.structures)} matrices by compact structures."

    def part_of(self, site: str, inventory: Inventory) -> int:
        """Return the number of the part that a site belongs to, counted from the embedding on."""
        block = block_of(site, inventory.block_prefix)
        if block is not None:
            return block + 1
        return inventory.blocks + 1 if inventory.head is not None and site == inventory.head.name else 0


class FactorToSize(BaseStep):
    """Factor what the steps before have left, by the method `method`, until `parameters` numbers are stored. What an
    error costs is measured on that model first, so the structures are not known before."""

    kind: Literal["factor_to_size"] = "factor_to_size"
    method: str
    parameters: int = Field(ge=1)

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        return factor_labels(inventory)

    def summary(self) -> str:
        return f"Factored what was left as the method `{self.method}` does, to {self.parameters:,} stored parameters."


Step = Annotated[Remove | Refit | Absorb | Fuse | Narrow | Factor | FactorToSize, Field(discriminator="kind")]
"""Any step, as a field of a pydantic model: the only list of them."""


def factor_labels(inventory: Inventory) -> tuple[Label, ...]:
    """Return the labels of the embedding, every block and, where it has a matrix of its own, the output head."""
    blocks = [Label(f"block {number + 1} of {inventory.blocks}", number) for number in range(inventory.blocks)]
    head = [] if inventory.head is None else [Label("the output head")]
    return (Label("the embedding", 0), *blocks, *head)


def _blocks(count: int) -> str:
    return "one block" if count == 1 else f"{count} blocks"
