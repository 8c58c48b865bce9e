"""The interface of a method: its name and needs, the ratios that it reaches, and its plan.

    WIDTH.range(inventory, WIDTH.options())                  # the ratios that it reaches on a model
    WIDTH.plan(inventory, 1.3, WIDTH.options(), {})          # the steps to a ratio

Torch-free: the service calls the same code when a job is posted, so it refuses exactly what the compressor would.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.families import KroneckerFamily
from modelpress.spec.inventory import Inventory
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import Range


@dataclass(frozen=True)
class SiteErrors:
    """The cost of an error at a site: the rise of the model's divergence, in nats per token.

    See `workers.compression.math.sensitivity`.

    Attributes:
        spectrum: cost of leaving out each singular value, descending.
        tiles: by the tile as '4x16', the cost of a Kronecker sum with 0, 1, 2, … terms; empty unless the method's
            `tiled` asks for it.
    """

    spectrum: Sequence[float]
    tiles: Mapping[str, Sequence[float]] = field(default_factory=dict)


Measured = Mapping[str, SiteErrors]
"""The cost of errors by site name."""


class MethodOptions(BaseModel):
    """The method of a recipe and its options. Unknown options are refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    def model_post_init(self, context: Any, /) -> None:
        """Mark the name as set, so that `exclude_unset` keeps it."""
        self.__pydantic_fields_set__.add("name")


Options = TypeVar("Options", bound=MethodOptions)


class Need(StrEnum):
    """An input that a method needs: calibration text, measured sensitivities, or trials of candidates."""

    CALIBRATION = "calibration"
    SENSITIVITIES = "sensitivities"
    TRIALS = "trials"


class Leaves(StrEnum):
    """The kind of checkpoint that a method leaves.

    `plain` is a checkpoint of the original's architecture, which stock engines open; `factored` has compact layers;
    `either` depends on the model.
    """

    PLAIN = "plain"
    FACTORED = "factored"
    EITHER = "either"


class Method(ABC, Generic[Options]):
    """A way of making a model smaller, as a recipe names it.

    Attributes:
        name: the name in a recipe.
        title: a few words, for people.
        description: a sentence or two, for people.
        paper: the publication of the method; None if there is none.
        needs: the inputs that it needs.
        leaves: the kind of checkpoint that it leaves.
        phased: whether it only replaces matrices one by one, so that training may come between.
        options: the class of its options.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    paper: ClassVar[str | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    leaves: ClassVar[Leaves]
    phased: ClassVar[bool] = False
    options: type[Options]

    def takes(self, architecture: Architecture) -> bool:
        """Return whether the method can be used on models of the architecture, as far as that shows without one."""
        return True

    @abstractmethod
    def range(self, inventory: Inventory, options: Options) -> Range:
        """Return the range of compression ratios that the method reaches on the model.

        Raises:
            MethodDoesNotFit: if the method cannot be used on this model.
            OptionDoesNotFit: if an option cannot be used on this model.
        """

    @abstractmethod
    def candidates(self, inventory: Inventory, ratio: float, options: Options) -> tuple[MethodOptions, ...]:
        """Return the options of the methods that may make the plan: these options, or several for a trial to choose."""

    def plain(self, inventory: Inventory, options: Options) -> tuple[MethodOptions, ...]:
        """Return the options of those candidates that leave ordinary matrices at every ratio; none unless this method
        chooses among others."""
        return ()


class PlanningMethod(Method[Options]):
    """A method that makes its own plan."""

    def tiled(self, options: Options) -> KroneckerFamily | None:
        """Return the Kronecker sums whose errors `plan` needs to be measured; None if it needs none."""
        return None

    def candidates(self, inventory: Inventory, ratio: float, options: Options) -> tuple[MethodOptions, ...]:
        return (options,)

    @abstractmethod
    def plan(self, inventory: Inventory, ratio: float, options: Options, measured: Measured) -> Plan:
        """Return the plan that makes the model `ratio` times smaller, within TOLERANCE.

        `measured` may be empty unless the method needs sensitivities. Raises RatioOutOfRange if the method does not
        reach the ratio, and what `range` raises.
        """
