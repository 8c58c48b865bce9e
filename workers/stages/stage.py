"""What a stage is, and how much of a job each one takes."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.contract.recipe import Recipe
from workers.messages import FETCH_SHARE
from workers.stages.context import Context


@dataclass(frozen=True)
class Stage:
    """One stage of a job. It reads the results of those before it and leaves a durable one of its own.

    `run(context, directory)` writes the result into an empty directory. `weight(recipe, turn)` says how long it takes
    for the ratio number `turn`, on a scale on which all stages of a plain job come to about 1; only the progress bar
    leans on it. A recipe for which it is not `wanted` has no such stage. `once`: it runs once, whatever the number of
    ratios, and before the stages that run for each of them.
    """

    name: str
    run: Callable[[Context, Path], None]
    weight: Callable[[Recipe, int], float]
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    once: bool = False


@dataclass(frozen=True)
class Schedule:
    """The stages that a recipe wants, in order, and the fraction of the whole job that each one takes."""

    recipe: Recipe
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, recipe: Recipe, stages: Sequence[Stage]) -> "Schedule":
        """Return the schedule of the stages that the recipe wants."""
        return cls(recipe, tuple(stage for stage in stages if stage.wanted(recipe)))

    def share(self, name: str, turn: int = 0) -> float:
        """Return the fraction of the job that a stage takes for the ratio number `turn`; 0 for one that is not there.

        What is left of 1 is the fetching of model and texts.
        """
        return sum(self._weight(stage, turn) for stage in self.stages if stage.name == name) * self._unit

    def before(self, turn: int, finished: Collection[str]) -> float:
        """Return the fraction of the job that is done once the stages `finished` of the ratio number `turn` are."""
        earlier = sum(self._weight(stage, each) for stage in self.stages for each in range(turn))
        now = sum(self._weight(stage, turn) for stage in self.stages if stage.name in finished)
        return FETCH_SHARE + (earlier + now) * self._unit

    @property
    def once(self) -> frozenset[str]:
        """Return the names of the stages that run once, whatever the number of ratios."""
        return frozenset(stage.name for stage in self.stages if stage.once)

    @property
    def _unit(self) -> float:
        turns = range(len(self.recipe.ratios))
        return (1 - FETCH_SHARE) / sum(self._weight(stage, turn) for stage in self.stages for turn in turns)

    def _weight(self, stage: Stage, turn: int) -> float:
        return 0.0 if stage.once and turn > 0 else stage.weight(self.recipe, turn)
