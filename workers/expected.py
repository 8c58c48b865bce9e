"""How long each stage of a job takes on two cores, as far as the recipe and the model's headers tell; without torch.

It makes the progress bar, and the time that is left where no job like this one has finished here before. While a job
runs, what its stages take corrects it; so the proportions matter most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from modelpress.contract.recipe import Recipe
from modelpress.spec.errors import CompressionError
from modelpress.spec.formats import FORMATS, MAIN
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import Need, method_of
from modelpress.spec.precision import PLAIN_BITS
from modelpress.spec.sizes import Candidate, Wanted, candidates
from workers.messages import START_STAGE, Expected

USUAL_PARAMETERS = 135_000_000
PASS_SECONDS = 5e-12
"""Seconds in which a token passes through one parameter, forwards."""
TRIED_TOKENS, MEASURED_TOKENS = 4096, 8192
"""Most calibration tokens on which a method is tried, and on which sensitivities are measured."""
UNKNOWN_SECONDS = 1.0
"""Of a stage that nothing is known of here."""


@dataclass(frozen=True)
class Work:
    """The recipe, the model and the candidate methods from which the seconds of one ratio are told."""

    recipe: Recipe
    parameters: int
    ways: tuple[Candidate, ...]
    """The ways to reach the ratio; empty where they are not known."""
    first: bool
    """Whether it is the first ratio, for which all measure together."""

    def passes(self, tokens: float, times: float = 1.0) -> float:
        """Return the seconds in which so many tokens pass so many times through the model."""
        return PASS_SECONDS * self.parameters * tokens * times

    @property
    def calibration_tokens(self) -> int:
        return self.recipe.calibration.sequences * self.recipe.calibration.length

    @property
    def evaluation_tokens(self) -> int:
        return self.recipe.evaluation.max_tokens * len(self.recipe.evaluation.datasets)

    @property
    def rounded(self) -> list[str]:
        """Return the formats for which weights are rounded."""
        rounds = any(way.rounds for way in self.ways) or (not self.ways and self.recipe.precision != PLAIN_BITS)
        return [name for name in self.recipe.formats if rounds and FORMATS[name].codes is not None]

    @property
    def tried(self) -> int:
        """Return how many methods are tried."""
        return len(self.ways) if len(self.ways) > 1 else 0

    @property
    def needs(self) -> frozenset[Need]:
        """Return what the methods that may be taken need: calibration, sensitivities, or neither."""
        methods = [way.method for way in self.ways] or [self.recipe.method]
        return frozenset().union(*(method_of(method).needs for method in methods))

    @property
    def structural(self) -> bool:
        """Return whether structure may go."""
        return not self.ways or any(way.structure > 1.0 for way in self.ways)


def inspecting(work: Work) -> float:
    return 0.3 + 4e-8 * work.parameters


def calibrating(work: Work) -> float:
    written = 0 if work.recipe.teacher_text is None else prod(work.recipe.teacher_text)
    return 0.2 + 1e-4 * (work.calibration_tokens + work.evaluation_tokens) + work.passes(written, times=4.5)


def planning(work: Work) -> float:
    tried = work.tried * work.passes(min(work.calibration_tokens, TRIED_TOKENS), times=40.0)
    measures = work.first and work.structural and Need.SENSITIVITIES in work.needs
    return 0.3 + tried + (sensitivities(work) if measures else 0.0)


def sensitivities(work: Work) -> float:
    """Return the seconds in which the effect of errors in each matrix is measured."""
    return 0.8 + work.passes(min(work.calibration_tokens, MEASURED_TOKENS), times=12.0)


def compressing(work: Work) -> float:
    phases = 1 if work.recipe.distillation is None else work.recipe.distillation.phases
    return 0.2 + (factoring(work) / phases if work.structural else 0.0)


def factoring(work: Work) -> float:
    """Return the seconds in which every matrix is fitted."""
    return 0.4 + work.passes(work.calibration_tokens, times=23.0)


def distilling(work: Work) -> float:
    if work.recipe.distillation is None:
        return 0.0
    phases = work.recipe.distillation.phases
    later = factoring(work) * (phases - 1) / phases if work.structural else 0.0
    return 1.0 + work.passes(work.recipe.distillation.tokens, times=5.0) + later


def rounding(work: Work) -> float:
    each = 1.0 + 4e-7 * work.parameters + work.passes(work.calibration_tokens, times=8.0)
    return 0.3 + (sensitivities(work) + each * len(work.rounded) if work.rounded else 0.0)


def tuning(work: Work) -> float:
    if work.recipe.distillation is None or not work.structural:
        return 0.2
    return 0.2 + len(work.rounded) * work.passes(work.recipe.distillation.tokens, times=2.5)


def writing(work: Work) -> float:
    return 0.3 + 1.5e-8 * work.parameters * len(work.recipe.formats)


def evaluating(work: Work) -> float:
    models = 3 if work.recipe.evaluation.baseline else 2
    further = sum(name != MAIN for name in work.rounded)
    read = work.passes(work.evaluation_tokens, times=models + 2 * further)
    return 1.5 + 4.0 * models + read + 6e-8 * work.parameters * (models + further)


def packaging(work: Work) -> float:
    return 1.0 + 1e-8 * work.parameters


def verifying(work: Work) -> float:
    return 7.0 + 3.0 * (len(work.recipe.formats) - 1) + 2e-8 * work.parameters


STARTING_SECONDS = 3.5
SECONDS: dict[str, Callable[[Work], float]] = {
    "inspect": inspecting,
    "calibrate": calibrating,
    "plan": planning,
    "compress": compressing,
    "distill": distilling,
    "quantise": rounding,
    "tune": tuning,
    "write": writing,
    "evaluate": evaluating,
    "package": packaging,
    "verify": verifying,
}
ONCE = {"inspect", "calibrate"}


def of_stages(recipe: Recipe, inventory: Inventory | None = None) -> Expected:
    """Return how long each stage takes, over all ratios; without an inventory, on a small model of today."""
    seconds = {START_STAGE: STARTING_SECONDS}
    works = [work_of(recipe, inventory, ratio, first=turn == 0) for turn, ratio in enumerate(recipe.ratios)]
    for name, take in SECONDS.items():
        seconds[name] = take(works[0]) if name in ONCE else sum(map(take, works))
    return Expected(seconds=seconds, measured=False)


def work_of(recipe: Recipe, inventory: Inventory | None, ratio: float, *, first: bool) -> Work:
    """Return what there is to compute for one of the recipe's ratios."""
    if inventory is None:
        return Work(recipe, USUAL_PARAMETERS, (), first)
    formats = tuple(FORMATS[name] for name in recipe.formats)
    wanted = Wanted(ratio, recipe.precision, formats, embedding_precision=recipe.embedding_precision)
    try:
        ways = candidates(inventory, recipe.method, wanted)
    except (CompressionError, ArithmeticError, LookupError, ValueError):
        ways = ()  # the stage `plan` says what is wrong
    return Work(recipe, inventory.total_parameters, ways, first)
