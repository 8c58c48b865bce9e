"""The stage of a job as a value, and the fraction of a job that each stage takes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelpress.contract.recipe import Recipe
from workers import expected
from workers.messages import FETCH_SHARE, Expected
from workers.stages.context import Context


@dataclass(frozen=True)
class Stage:
    """One stage of a job, which reads the results of earlier stages and leaves a durable result of its own.

    Attributes:
        name: the stage's name in results, reports and the API.
        run: `run(context, directory)` writes the result into an empty directory.
        wanted: `wanted(recipe)` returns whether the recipe has this stage.
        once: whether it runs once for all ratios, before the stages that run for each of them.
    """

    name: str
    run: Callable[[Context, Path], None]
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    once: bool = False


@dataclass(frozen=True)
class Schedule:
    """The stages that a recipe has, in order, and the fraction of the whole job that each one takes."""

    recipe: Recipe
    stages: tuple[Stage, ...]
    each: Mapping[str, float]
    """Seconds that each stage is expected to take, over all ratios."""
    starting: float
    """Seconds that the process is expected to take until the first one."""
    measured: bool
    """Whether jobs like this one have taken them."""

    @classmethod
    def of(cls, recipe: Recipe, stages: Sequence[Stage], told: Expected | None = None) -> "Schedule":
        """Return the schedule of those `stages` that the recipe has, by the seconds that were `told`."""
        told = told if told and told.seconds else expected.of_stages(recipe)
        wanted = tuple(stage for stage in stages if stage.wanted(recipe))
        each = {stage.name: told.seconds.get(stage.name, expected.UNKNOWN_SECONDS) for stage in wanted}
        return cls(recipe, wanted, each, told.starting, told.measured)

    def share(self, name: str, turn: int = 0) -> float:
        """Return the fraction of the job that a stage takes for `recipe.ratios[turn]`; 0 if it is not scheduled.

        All fractions together leave FETCH_SHARE for fetching the model and the texts.
        """
        return sum(self._weight(stage, turn) for stage in self.stages if stage.name == name) * self._unit

    def before(self, turn: int, finished: Collection[str]) -> float:
        """Return the fraction of the job that is done once the stages `finished` of `recipe.ratios[turn]` are."""
        earlier = sum(self._weight(stage, each) for stage in self.stages for each in range(turn))
        now = sum(self._weight(stage, turn) for stage in self.stages if stage.name in finished)
        return FETCH_SHARE + (earlier + now) * self._unit

    @property
    def seconds(self) -> float:
        """Return the seconds that all stages are expected to take."""
        return sum(self.each.values())

    @property
    def once(self) -> frozenset[str]:
        """Return the names of the stages that run once, whatever the number of ratios."""
        return frozenset(stage.name for stage in self.stages if stage.once)

    @property
    def _unit(self) -> float:
        turns = range(len(self.recipe.ratios))
        return (1 - FETCH_SHARE) / sum(self._weight(stage, turn) for stage in self.stages for turn in turns)

    def _weight(self, stage: Stage, turn: int) -> float:
        if stage.once and turn > 0:
            return 0.0
        return self.each[stage.name] / (1 if stage.once else len(self.recipe.ratios))
