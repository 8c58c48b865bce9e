"""What can be seen to be wrong with a recipe before a weight is opened: every wrong field, not only the first."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

from pydantic import BaseModel

from app.errors import MethodDoesNotFit, RatioOutOfRange, SeveralRefused, UnsupportedModel
from app.sources.models import LOCAL, ModelSources, ResolvedModel
from app.sources.text import HUB, ResolvedText
from modelpress.contract.job import Source
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused
from modelpress.spec import methods
from modelpress.spec.architectures import is_registered
from modelpress.spec.formats import FORMATS
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import Leaves, method_of
from modelpress.spec.ranges import Range
from modelpress.spec.ranges import RatioOutOfRange as NotReached
from modelpress.spec.sizes import Candidate, Wanted, bytes_before, candidates, reachable

MOST_REMEMBERED = 256
NEVER_WRONG = {"metadata", "priority", "device", "seed"}
"""Fields of a recipe that fit every model."""
SHORTEST_WINDOW = 16
"""The least tokens of a window that a recipe may ask for."""

log = logging.getLogger(__name__)


class Texts(Protocol):
    """The texts that a recipe may name."""

    def check(self, reference: str, field: str) -> ResolvedText:
        """Find the text of a reference. Raises Refused, naming `field`, where there is none."""


@dataclass(frozen=True)
class Checked:
    """A recipe in which nothing can be seen to be wrong, and what it was found to mean."""

    recipe: Recipe
    source: Source
    model: ResolvedModel


def check(recipe: Recipe, models: ModelSources, texts: Texts) -> Checked:
    """Return the recipe with the lengths that the client left open, and what its references mean.

    Raises:
        Refused: something is wrong; the error names every wrong field.
        HubUnavailable: the hub could not be asked.
    """
    checked, faults = look_over(recipe, models, texts)
    if faults:
        raise refusal(faults)
    return checked


def look_over(recipe: Recipe, models: ModelSources, texts: Texts) -> tuple[Checked, list[Refused]]:
    """Return what `check` does, together with what it would refuse.

    Raises:
        Refused: there is no model to speak of; the error names every field that is wrong besides.
        HubUnavailable: the hub could not be asked.
    """
    faults = list(overlap(recipe))
    found: list[ResolvedText] = []
    for dataset, field in first_fields(recipe).items():
        try:
            found.append(texts.check(dataset, field))
        except Refused as fault:
            faults.append(fault)
    try:
        model = models.resolve(recipe.model)
        recipe = sized(fitted(recipe, model.config), model.inventory)
    except Refused as fault:
        raise refusal([fault, *faults]) from fault
    faults += faults_in(recipe, model)
    source = Source(
        reference=recipe.model,
        revision=model.revision,
        model_type=model.inventory.model_type,
        architecture="registered" if is_registered(model.inventory.model_type) else "inferred",
        parameters=model.inventory.total_parameters,
        text_revisions={text.reference: text.revision for text in found if text.revision is not None},
    )
    return Checked(recipe, source, model), faults


class Faulty(Exception):
    """Raised with what is wrong with a recipe for a model."""

    def __init__(self, faults: Sequence[Refused]) -> None:
        super().__init__()
        self.faults = faults


def faults_in(recipe: Recipe, model: ResolvedModel) -> Sequence[Refused]:
    """Return what is wrong with a recipe for a model. That nothing is, is remembered."""
    try:
        look_at(recipe.model_dump_json(exclude=NEVER_WRONG), model)
    except Faulty as faulty:
        return faulty.faults
    return ()


@lru_cache(MOST_REMEMBERED)
def look_at(recipe_json: str, model: ResolvedModel) -> None:
    """Raise Faulty where something is wrong with a recipe for a model."""
    recipe = Recipe.model_validate_json(recipe_json)
    faults = [fault for look in LOOKS for fault in look(recipe, model)]
    if faults:
        raise Faulty(faults)


def refusal(faults: Sequence[Refused]) -> Refused:
    """Return the one fault, or an error that lists all of them."""
    return faults[0] if len(faults) == 1 else SeveralRefused(faults)


def asks_hub(recipe: Recipe) -> bool:
    """Return whether checking the recipe takes answers of the model hub."""
    return not recipe.model.startswith(LOCAL) or any(dataset.startswith(HUB) for _, dataset in recipe.texts())


def first_fields(recipe: Recipe) -> dict[str, str]:
    """Return, for each dataset, the field that names it first."""
    fields: dict[str, str] = {}
    for field, dataset in recipe.texts():
        fields.setdefault(dataset, field)
    return fields


def overlap(recipe: Recipe) -> Iterator[Refused]:
    """Refuse to measure on text that the result is made from."""
    made_from = {dataset: field for field, dataset in recipe.texts() if not field.startswith("evaluation.")}
    for index, dataset in enumerate(recipe.evaluation.datasets):
        if dataset in made_from:
            field = f"evaluation.datasets.{index}"
            yield Refused(field, f"{dataset!r} is also {made_from[dataset]}; evaluate on other text")


def fitted(recipe: Recipe, config: Mapping[str, Any]) -> Recipe:
    """Return the recipe with each length that the client left open no longer than the positions of the model."""
    positions = positions_of(config)
    if positions is None or positions < SHORTEST_WINDOW:
        return recipe
    sections: dict[str, BaseModel | None] = {
        "calibration": recipe.calibration,
        "evaluation": recipe.evaluation,
        "distillation": recipe.distillation,
    }
    changed = {}
    for name, section in sections.items():
        field = "window" if name == "evaluation" else "length"
        if section is not None and field not in section.model_fields_set and getattr(section, field) > positions:
            changed[name] = section.model_copy(update={field: positions})
    return recipe.model_copy(update=changed)


def sized(recipe: Recipe, inventory: Inventory) -> Recipe:
    """Return the recipe with its target as a ratio. Raises Refused for bytes that are no fewer than the model's."""
    before = bytes_before(inventory)
    if recipe.target_bytes is not None and recipe.target_bytes >= before:
        raise Refused("target_bytes", f"the model has {before} bytes at 16 bits a number; send fewer")
    return recipe.sized(before)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return how many positions the model knows; None where its config does not say."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    return positions if isinstance(positions, int) else None


def lengths(recipe: Recipe, model: ResolvedModel) -> Iterator[Refused]:
    """Refuse windows of text that are longer than the positions of the model."""
    positions = positions_of(model.config)
    if positions is None:
        return
    asked = {"calibration.length": recipe.calibration.length, "evaluation.window": recipe.evaluation.window}
    if recipe.distillation is not None:
        asked["distillation.length"] = recipe.distillation.length
    for field, length in asked.items():
        if length > positions:
            yield Refused(field, f"{length} tokens are more than the model's {positions} positions; send {positions}")


def ratios(recipe: Recipe, model: ResolvedModel) -> Iterator[Refused]:
    """Refuse ratios that the method does not reach on the model, and options that do not fit it."""
    try:
        feasible = feasible_range(recipe, model.inventory)
    except Refused as fault:
        yield fault
        return
    for index, ratio in enumerate(recipe.ratios):
        if ratio not in feasible:
            lowest, highest = math.ceil(feasible.lowest * 1000) / 1000, math.floor(feasible.highest * 1000) / 1000
            yield RatioOutOfRange(
                f"target_ratio.{index}" if recipe.is_sweep else "target_ratio",
                f"{ratio:g} cannot be reached for {recipe.model} with method {recipe.method.name!r} at the precision "
                f"{recipe.precision} in {' and '.join(recipe.formats)}; send a number from {lowest:.3f} to "
                f"{highest:.3f}",
            )


def wanted(recipe: Recipe, ratio: float) -> Wanted:
    """Return what the recipe says of the size of the result for one ratio."""
    formats = tuple(FORMATS[name] for name in recipe.formats)
    return Wanted(ratio, recipe.precision, formats, embedding_precision=recipe.embedding_precision)


def ways(recipe: Recipe, inventory: Inventory) -> list[tuple[Candidate, ...]]:
    """Return the ways to reach each ratio; none if one cannot be reached, of which `ratios` says what is wrong."""
    try:
        return [candidates(inventory, recipe.method, wanted(recipe, ratio)) for ratio in recipe.ratios]
    except (NotReached, methods.MethodDoesNotFit, methods.OptionDoesNotFit, ArithmeticError, LookupError, ValueError):
        return []


def left(recipe: Recipe, inventory: Inventory) -> Leaves:
    """Return what kind of checkpoint is left, as far as that is known before anything is tried."""
    kinds = {method_of(way.method).leaves for some in ways(recipe, inventory) for way in some}
    return kinds.pop() if len(kinds) == 1 else method_of(recipe.method).leaves


def architecture(recipe: Recipe, model: ResolvedModel) -> Iterator[Refused]:
    """Refuse a model whose architecture is only inferred, unless the recipe takes such models."""
    model_type = model.inventory.model_type
    if recipe.architecture == "registered" and not is_registered(model_type):
        yield UnsupportedModel(
            "model",
            f"'{recipe.model}' is of the architecture {model_type!r}, which is not registered; its parts were found by "
            'structure alone: send "architecture": "inferred" to compress it nevertheless',
        )


def trained(recipe: Recipe, model: ResolvedModel) -> Iterator[Refused]:
    """Refuse to train factors alone where the method may leave none, and refuse to shard a training where weights are
    rounded."""
    distillation, method = recipe.distillation, method_of(recipe.method)
    if distillation is None:
        return
    if distillation.trainable == "factors" and method.leaves is not Leaves.FACTORED:
        message = f"the method {method.name!r} need not leave factors; send 'all' or 'norms'"
        yield Refused("distillation.trainable", message)
    if distillation.sharded and any(way.rounds for some in ways(recipe, model.inventory) for way in some):
        message = "the rounded model is trained by one process, which holds it whole; send false, or precision 16"
        yield Refused("distillation.sharded", message)


def phases(recipe: Recipe, model: ResolvedModel) -> Iterator[Refused]:
    """Refuse several phases for a method that does more than factor matrices, or more phases than blocks."""
    asked, method = 1 if recipe.distillation is None else recipe.distillation.phases, method_of(recipe.method)
    blocks = model.inventory.blocks
    if asked > 1 and not method.phased:
        message = f"the method {method.name!r} does more than factor one matrix after another; send 1 or leave it out"
        yield Refused("distillation.phases", message)
    elif asked > blocks:
        yield Refused("distillation.phases", f"the model has {blocks} blocks; send at most {blocks}")


def formats(recipe: Recipe, model: ResolvedModel) -> Iterator[Refused]:
    """Refuse formats that cannot hold what the method leaves, as far as that is known now."""
    leaves = left(recipe, model.inventory)
    for index, name in enumerate(recipe.formats):
        reason = FORMATS[name].refuses(model.inventory, leaves)
        if reason is not None:
            told = f"{name!r} is not for what the method {recipe.method.name!r} leaves of this model: {reason}"
            yield Refused(f"formats.{index}", told)


def baseline(recipe: Recipe, model: ResolvedModel) -> Iterator[Refused]:
    """Refuse to drop blocks of a model that has one."""
    if recipe.evaluation.baseline and model.inventory.blocks < 2:
        yield Refused("evaluation.baseline", "the model has a single block, which cannot be dropped; leave it out")


LOOKS: Final[tuple[Callable[[Recipe, ResolvedModel], Iterator[Refused]], ...]] = (
    architecture,
    lengths,
    ratios,
    trained,
    phases,
    baseline,
    formats,
)


def feasible_range(recipe: Recipe, inventory: Inventory) -> Range:
    """Return the target ratios that the recipe's method reaches on the model, at its precision in its formats.

    Raises Refused where it does not fit.
    """
    try:
        return reachable(inventory, recipe.method, wanted(recipe, 1.0))
    except NotReached as error:
        raise Refused("precision", f"{error}; send 'auto' or 16, or another method") from error
    except methods.OptionDoesNotFit as error:
        raise Refused(f"method.{error.option}", str(error)) from error
    except methods.MethodDoesNotFit as error:
        raise MethodDoesNotFit("method", str(error)) from error
    except (ArithmeticError, LookupError, ValueError) as error:
        # Such as blocks of different widths, which pruned checkpoints have.
        log.exception("method_not_applicable")
        message = f"the method {recipe.method.name!r} cannot be applied to the shapes of this model; choose another one"
        raise MethodDoesNotFit("method", message) from error
