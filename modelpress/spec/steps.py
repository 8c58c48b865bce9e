"""The steps of a plan, each with the labels of the parts that it makes.

`workers.compression.steps` has the function that carries out each of them.

Blocks are numbered as in the original. A step makes a list of parts. Each part is stored when it is finished, and a
compression that was stopped resumes after the last one.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from modelpress.spec.codes import CODES
from modelpress.spec.criteria import Criterion
from modelpress.spec.dimensions import block_of
from modelpress.spec.inventory import Inventory
from modelpress.spec.structures import AnyStructure

"""The score by which the next block to remove is chosen; `workers.compression.steps.influence` computes each."""


@dataclass(frozen=True)
class Label:
    """The label of a part for people, such as 'refitting block 3 of 22'.

    `block` is the original's block that the part replaces, or the first one behind it; None if there is none, or if it
    is only known once it is chosen.
    """

    text: str
    block: int | None = None


class BaseStep(BaseModel, ABC):
    """One step of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    removes: ClassVar[bool] = False
    """Whether each part of the step removes a block."""

    @abstractmethod
    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        """Return one label for each part that the step makes, in order.

        `inventory` is the original's; `removed` is the number of blocks that earlier steps have removed.
        """

    @abstractmethod
    def summary(self) -> str:
        """Return a sentence for the model card about what the step did."""


class Remove(BaseStep):
    """Remove `count` blocks one after another, each time the one with the lowest score by `criterion`."""

    removes: ClassVar[bool] = True

    kind: Literal["remove"] = "remove"
    count: int = Field(ge=1)
    criterion: Criterion

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        return tuple(Label(f"removing block {number} of {self.count}") for number in range(1, self.count + 1))

    def summary(self) -> str:
        return f"Removed {_blocks(self.count)}, chosen by `{self.criterion}`."


class KeepExperts(BaseStep):
    """Leave `count` experts in each mixture of experts: those that contribute most to its output."""

    kind: Literal["keep_experts"] = "keep_experts"
    count: int = Field(ge=1)

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        remaining = inventory.blocks - removed
        return tuple(Label(f"removing experts of block {number} of {remaining}") for number in range(1, remaining + 1))

    def summary(self) -> str:
        return f"Left {self.count} experts in each mixture, those that contribute most to its output."


class Refit(BaseStep):
    """Refit the projections of the remaining blocks, in closed form, to the original's hidden states.

    Those before the first removed block are left as they are, unless `everywhere`.
    """

    kind: Literal["refit"] = "refit"
    everywhere: bool = False

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        remaining = inventory.blocks - removed
        return tuple(Label(f"refitting block {number} of {remaining}") for number in range(1, remaining + 1))

    def summary(self) -> str:
        return "Refitted the projections of the remaining blocks to the original's hidden states, in closed form."


class Absorb(BaseStep):
    """Distil each removed block into the blocks around it. `tokens` is the training budget of all removed blocks."""

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
    """Remove `count` blocks as FuseGPT does (arXiv 2411.14507): distil each into its group before choosing the next.

    `tokens` is the training budget of all removed blocks together; None takes 20 passes over the calibration text for
    each block.
    """

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
    """Narrow every block to `intermediate_size` hidden units and `key_value_heads` key/value heads; None keeps all."""

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
    """Replace matrices by compact structures, part by part. Each part is fitted to the outputs of the parts before it.

    The parts are the embedding, the blocks, and the output head if it has a matrix of its own.

    Attributes:
        structures: {site: structure} by full module name. Other sites keep their matrix; a tied output head with a
            structure is stored on its own.
        compensation: share of the error of earlier parts that a site is fitted to undo, 0 to 1.
        data_free: fit the weights themselves, without activations.
        first: number of the first part to make; earlier ones are in the model already.
        last: number of the part to stop before; None goes on to the end.
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
        """Return the number of the part that a site belongs to: 0 for the embedding, then the blocks, then the head."""
        block = block_of(site, inventory.block_prefix)
        if block is not None:
            return block + 1
        return inventory.blocks + 1 if inventory.head is not None and site == inventory.head.name else 0


class FactorToSize(BaseStep):
    """Factor the model that the earlier steps have left, by the method `method`, to `parameters` stored parameters.

    Sensitivities are measured on that model first, so the plan cannot state the structures.
    """

    kind: Literal["factor_to_size"] = "factor_to_size"
    method: str
    parameters: int = Field(ge=1)

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        return factor_labels(inventory)

    def summary(self) -> str:
        return f"Factored what was left as the method `{self.method}` does, to {self.parameters:,} stored parameters."


class Quantise(BaseStep):
    """Round matrices to codes, part by part, with the error feedback of GPTQ (arXiv 2210.17323).

    The parts are the embedding, the remaining blocks, and the output head if it has a matrix of its own. Each is
    rounded on the inputs that it has behind the rounded parts before it.

    Attributes:
        format: the file format that has these codes.
        codes: {site: name of its code} by full module name. Other sites keep 16 bits.
    """

    kind: Literal["quantise"] = "quantise"
    format: str
    codes: Mapping[str, str]

    @field_validator("codes")
    @classmethod
    def check_codes(cls, codes: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := set(codes.values()) - CODES.keys():
            raise ValueError(f"no such codes: {', '.join(sorted(unknown))}; there are {', '.join(CODES)}")
        return codes

    def labels(self, inventory: Inventory, removed: int) -> tuple[Label, ...]:
        remaining = inventory.blocks - removed
        blocks = [Label(f"rounding block {number} of {remaining}") for number in range(1, remaining + 1)]
        head = [] if inventory.head is None else [Label("rounding the output head")]
        return (Label("rounding the embedding", 0), *blocks, *head)

    def summary(self) -> str:
        counted = Counter(self.codes.values()).most_common()
        codes = ", ".join(f"{count} to `{code}`" for code, count in counted)
        return f"Rounded matrices for the format `{self.format}`: {codes}."


Step = Annotated[
    Remove | KeepExperts | Refit | Absorb | Fuse | Narrow | Factor | FactorToSize | Quantise,
    Field(discriminator="kind"),
]
"""Any step, as a field of a pydantic model. This is the only list of steps."""


def factor_labels(inventory: Inventory) -> tuple[Label, ...]:
    """Return the labels of the embedding, every block and, if it has a matrix of its own, the output head."""
    blocks = [Label(f"block {number + 1} of {inventory.blocks}", number) for number in range(inventory.blocks)]
    head = [] if inventory.head is None else [Label("the output head")]
    return (Label("the embedding", 0), *blocks, *head)


def _blocks(count: int) -> str:
    return "one block" if count == 1 else f"{count} blocks"
