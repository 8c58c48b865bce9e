"""A plan: the steps that make a model smaller, and its number of stored parameters before and after them."""

from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from modelpress.spec.inventory import Inventory
from modelpress.spec.precision import PLAIN_BITS, Limits, Precision
from modelpress.spec.steps import BaseStep, Label, Step

AStep = TypeVar("AStep", bound=BaseStep)


class Plan(BaseModel):
    """The steps that make a model smaller.

    Attributes:
        method: name of the method that made the plan.
        steps: the steps, in order.
        parameters_before: parameters that the original stores.
        parameters_after: parameters that the result stores.
        precision: the most bits that a weight keeps when it is rounded after the steps; 16: none is rounded.
        embedding_precision: the same for embedding and output head; `auto`: as `precision`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    steps: tuple[Step, ...]
    parameters_before: int
    parameters_after: int
    precision: Precision = PLAIN_BITS
    embedding_precision: Precision = "auto"

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded after the steps."""
        return self.precision != PLAIN_BITS

    @property
    def limits(self) -> Limits:
        """The most bits that weights keep."""
        return Limits(self.precision, self.embedding_precision)

    @property
    def ratio(self) -> float:
        """The compression ratio: stored parameters before / after."""
        return self.parameters_before / self.parameters_after

    def labels_by_step(self, inventory: Inventory, removed: int = 0) -> Iterator[tuple[Label, ...]]:
        """Yield, per step, the labels of the parts that it makes.

        `inventory` is the original's; `removed` blocks were gone before the first step.
        """
        for step in self.steps:
            labels = step.labels(inventory, removed)
            removed += len(labels) if step.removes else 0
            yield labels

    def labels(self, inventory: Inventory) -> tuple[Label, ...]:
        """Return the labels of all parts, in order. `inventory` is the original's."""
        return tuple(label for labels in self.labels_by_step(inventory) for label in labels)

    def step(self, kind: type[AStep]) -> AStep | None:
        """Return the first step of the class `kind`, or None if the plan has none."""
        return next((step for step in self.steps if isinstance(step, kind)), None)
