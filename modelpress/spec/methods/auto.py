"""The default method: try several methods and take the one that does best on held-out text."""

from contextlib import suppress
from typing import Any, ClassVar, Literal

from modelpress.spec.inventory import Inventory
from modelpress.spec.methods.base import Leaves, Method, MethodOptions, Need
from modelpress.spec.methods.errors import MethodDoesNotFit
from modelpress.spec.methods.experts import EXPERTS
from modelpress.spec.methods.fusion import FUSION
from modelpress.spec.methods.low_rank import LOW_RANK
from modelpress.spec.methods.width import WIDTH
from modelpress.spec.methods.width_low_rank import WIDTH_LOW_RANK
from modelpress.spec.ranges import Range


class AutoOptions(MethodOptions):
    """Options of the method `auto`, which has none."""

    name: Literal["auto"] = "auto"


_CANDIDATES: tuple[Method[Any], ...] = (LOW_RANK, WIDTH_LOW_RANK, WIDTH, FUSION, EXPERTS)


class AutoMethod(Method[AutoOptions]):
    """A method that chooses among others by a trial of each candidate (`workers.compression.choice`)."""

    name: ClassVar[str] = "auto"
    title: ClassVar[str] = "bits first, then structure"
    description: ClassVar[str] = (
        "Rounds weights as `quantisation` does, after `width` where the fewest bits do not suffice. With "
        '`"precision": 16` it tries `low_rank`, `width_low_rank`, `width`, `fusion` and, on a mixture, `experts` on '
        "part of the calibration text and takes the one that does best on held-out text; the report lists the result "
        "of each trial."
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.TRIALS})
    leaves: ClassVar[Leaves] = Leaves.EITHER
    options = AutoOptions

    def range(self, inventory: Inventory, options: AutoOptions) -> Range:
        return Range.spanning(*self._ranges(inventory).values())

    def candidates(self, inventory: Inventory, ratio: float, options: AutoOptions) -> tuple[MethodOptions, ...]:
        return tuple(each for each, reached in self._ranges(inventory).items() if ratio in reached)

    def plain(self, inventory: Inventory, options: AutoOptions) -> tuple[MethodOptions, ...]:
        return tuple(each for each in self._ranges(inventory) if each.name in (WIDTH.name, FUSION.name, EXPERTS.name))

    def _ranges(self, inventory: Inventory) -> dict[MethodOptions, Range]:
        """Return the range of ratios that each candidate reaches on the model."""
        reached: dict[MethodOptions, Range] = {}
        for method in _CANDIDATES:
            options = method.options()
            with suppress(MethodDoesNotFit):
                reached[options] = method.range(inventory, options)
        return reached


AUTO = AutoMethod()
