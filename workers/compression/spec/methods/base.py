"""What a method is: how it is called, what it needs and leaves, which ratios it reaches, and how it plans.

    WIDTH.range(inventory, WIDTH.options())                  # the ratios it reaches on a model
    WIDTH.plan(inventory, 1.3, WIDTH.options(), {})          # the steps that lead there

Free of torch: the service asks all of it when a job is posted, so that a refusal and the compressor never disagree.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from workers.compression.spec.families import KroneckerFamily
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.plan import Plan
from workers.compression.spec.ranges import Range


@dataclass(frozen=True)
class SiteErrors:
    """What an error at a site costs, in nats per token of the model's divergence.

    `spectrum`: leaving out each singular value, descending. `tiles`, by the tile as '4x16': what a Kronecker sum of 0,
    1, 2, … terms with this tile costs; nothing for methods that do not ask for it. See
    `workers.compression.math.sensitivity`.
    """

    spectrum: Sequence[float]
    tiles: Mapping[str, Sequence[float]] = field(default_factory=dict)


Measured = Mapping[str, SiteErrors]
"""What an error costs, by the name of the site."""


class MethodOptions(BaseModel):
    """What a recipe says of its method. Unknown options are refused: a misspelt one must not be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    def model_post_init(self, context: Any, /) -> None:
        """Count the name as set, so that a client that sends only what was set sends it."""
        self.__pydantic_fields_set__.add("name")


Options = TypeVar("Options", bound=MethodOptions)


class Need(StrEnum):
    """What a method must be given."""

    CALIBRATION = "calibration"
    SENSITIVITIES = "sensitivities"
    TRIALS = "trials"


class Leaves(StrEnum):
    """What kind of checkpoint a method leaves: one of the original's architecture, which stock engines open, or one
    with factored layers. `either` depends on the model."""

    PLAIN = "plain"
    FACTORED = "factored"
    EITHER = "either"


class Method(ABC, Generic[Options]):
    """A way of making a model smaller, as a recipe names it.

    `title` says what it does in a few words, `description` in a sentence or two; `paper` is where it was published.
    `phased`: all that it does is to replace one matrix after another, so a training may come between.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    paper: ClassVar[str | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    leaves: ClassVar[Leaves]
    phased: ClassVar[bool] = False
    options: type[Options]

    @abstractmethod
    def range(self, inventory: Inventory, options: Options) -> Range:
        """Return the lowest and the highest target ratio that the method reaches on the model.

        Raises MethodDoesNotFit where the method is not for this model, and OptionDoesNotFit where an option is not.
        """

    @abstractmethod
    def candidates(self, inventory: Inventory, ratio: float, options: Options) -> tuple[MethodOptions, ...]:
        """Return the methods that plan in this one's name: itself, or several, of which a trial picks one."""


class PlanningMethod(Method[Options]):
    """A method that plans by itself."""

    def tiled(self, options: Options) -> KroneckerFamily | None:
        """Return the Kronecker sums whose errors are to be measured for `plan`; None where it asks for none."""
        return None

    def candidates(self, inventory: Inventory, ratio: float, options: Options) -> tuple[MethodOptions, ...]:
        return (options,)

    @abstractmethod
    def plan(self, inventory: Inventory, ratio: float, options: Options, measured: Measured) -> Plan:
        """Return the steps that make the model `ratio` times smaller, within TOLERANCE.

        `measured` is needed by methods that need sensitivities. Raises RatioOutOfRange, and what `range` raises.
        """
