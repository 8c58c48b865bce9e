"""Measure what an error in each matrix does to the model's output, and share the budget accordingly.

What was measured is kept beside the results of the stages: a recipe with several ratios needs it once.
"""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from app.contract.codes import FailureCode
from app.contract.recipe import Recipe
from workers.compression.choice import Trial, trials
from workers.compression.math.sensitivity import Sensitivity, from_tensors, measure, site_errors, to_tensors
from workers.compression.spec.families import KroneckerFamily
from workers.compression.spec.methods import METHODS, MethodOptions, Need, method_of, planner_of
from workers.compression.spec.plan import Plan
from workers.compression.spec.steps import factor_labels
from workers.messages import AttemptFailed
from workers.stages import calibrate, compute, inspect, names
from workers.stages.context import Context
from workers.stages.part_files import ScratchFiles
from workers.stages.stage import Stage

PLAN = "plan.json"
CHOICE = "choice.json"
TRIALS = "trials"
TRIED = 0.8
"""Part of this stage that trying methods takes, where it is asked for."""
TRIALS_WEIGHT = 1.2
"""How long trying methods takes."""
SENSITIVITIES = "sensitivities"
SENSITIVITIES_FILE = "sensitivities.safetensors"


def run(context: Context, directory: Path) -> None:
    inventory, asked = inspect.model_inventory(context), context.assignment.recipe.method
    tried: list[Trial] = []
    options = asked
    if Need.TRIALS in method_of(asked).needs:
        candidates = method_of(asked).candidates(inventory, context.ratio, asked)
        tried = try_methods(context, candidates, directory / TRIALS)
        options = best_of(context, tried)
    method = planner_of(options)
    measured = site_errors(measured_once(context, method.tiled(options))) if Need.SENSITIVITIES in method.needs else {}
    plan = method.plan(inventory, context.ratio, options, measured)
    (directory / PLAN).write_text(plan.model_dump_json(indent=1))
    (directory / CHOICE).write_text(json.dumps({trial.method.name: trial.perplexity for trial in tried}, indent=1))


def try_methods(context: Context, candidates: Sequence[MethodOptions], scratch: Path) -> list[Trial]:
    """Return what each candidate makes of the model in small; its parts wait in `scratch`, which is gone afterwards."""
    model = compute.open_model(context, inspect.model_dir(context))
    seed = context.assignment.recipe.seed
    directories = (scratch / str(number) for number in itertools.count())
    tried: list[Trial] = []
    shutil.rmtree(scratch, ignore_errors=True)
    context.progress(0.0, "trying methods")
    for trial in trials(
        model,
        candidates,
        context.ratio,
        calibrate.calibration(context),
        store=lambda: ScratchFiles(next(directories)),
        seed=seed,
    ):
        tried.append(trial)
        found = ", ".join(f"{each.method.name} {each.perplexity:.2f}" for each in tried)
        fraction = len(tried) / len(candidates) * TRIED
        context.progress(fraction, f"trying methods; perplexity on text kept back: {found}")
    shutil.rmtree(scratch, ignore_errors=True)
    return tried


def best_of(context: Context, tried: Sequence[Trial]) -> MethodOptions:
    """Return the method that left the lowest perplexity. Raises AttemptFailed where none left a model that predicts."""
    if not tried:
        asked = context.assignment.recipe.method
        reached = method_of(asked).range(inspect.model_inventory(context), asked)
        raise AttemptFailed(
            FailureCode.NO_METHOD_FITS,
            f"no method of {asked.name!r} made a working model at ratio {context.ratio:g}; ask for another ratio "
            f"between {reached.lowest:.2f} and {reached.highest:.2f}, or name a method",
        )
    return min(tried, key=lambda trial: trial.perplexity).method


def trials_of(context: Context) -> dict[str, float]:
    """The perplexity that each tried method left, by its name; nothing where the recipe named one."""
    found: dict[str, float] = json.loads((context.results[names.PLAN] / CHOICE).read_text())
    return found


def measured_once(context: Context, tiled: KroneckerFamily | None) -> dict[str, Sensitivity]:
    """What any attempt has measured for any ratio, or else what is measured now."""
    directory = context.shared.finished(SENSITIVITIES)
    if directory is None:
        save_file(
            to_tensors(measure_sensitivities(context, tiled)), context.shared.begin(SENSITIVITIES) / SENSITIVITIES_FILE
        )
        directory = context.shared.finish(SENSITIVITIES)
    return from_tensors(load_file(directory / SENSITIVITIES_FILE))


def measure_sensitivities(context: Context, tiled: KroneckerFamily | None) -> dict[str, Sensitivity]:
    model = compute.open_model(context, inspect.model_dir(context))
    parts = len(factor_labels(model.inventory))
    found: dict[str, Sensitivity] = {}
    context.progress(0.0, "measuring what the output feels")
    ids, seed = calibrate.calibration(context), context.assignment.recipe.seed
    for done, part in enumerate(measure(model, ids, seed=seed, tiled=tiled), 1):
        found |= part
        context.progress(done / parts, "measuring what the output feels")
    return found


def plan_of(context: Context) -> Plan:
    """Return the plan of this ratio."""
    return context.hold("plan", lambda: Plan.model_validate_json((context.results[names.PLAN] / PLAN).read_bytes()))


def sensitivities_of(context: Context) -> dict[str, Sensitivity]:
    """Return what the plan was made from; nothing for a method that does not ask."""
    asked, planned = context.assignment.recipe.method, plan_of(context).method
    options = asked if asked.name == planned else METHODS[planned].options()
    method = planner_of(options)
    return measured_once(context, method.tiled(options)) if Need.SENSITIVITIES in method.needs else {}


def weight(recipe: Recipe, turn: int) -> float:
    """Return how long this stage takes: measuring, which serves every ratio, and trying methods, which does not."""
    needs = method_of(recipe.method).needs
    trying = TRIALS_WEIGHT if Need.TRIALS in needs else 0.0
    measuring = 0.0 if turn > 0 and Need.SENSITIVITIES in needs else 0.22
    return measuring + trying


STAGE = Stage(names.PLAN, run, weight)
