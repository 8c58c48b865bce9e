"""Measure what an error in each matrix does to the model's output, and share the budget accordingly.

What was measured is kept beside the results of the stages: a recipe with several ratios needs it once.
"""

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from app.contract.job import Stage
from workers.compression.choice import Trial, trials
from workers.compression.math.allocation import measured_plan
from workers.compression.math.sensitivity import Sensitivity, from_tensors, measure, to_tensors
from workers.compression.parts import CompressedPart
from workers.compression.spec.catalog import AUTO, RESIZINGS, is_measured
from workers.compression.spec.plans import Plan
from workers.compression.spec.ranges import candidates, range_of
from workers.compression.steps.factor import part_count
from workers.compression.steps.fuse import EPOCHS
from workers.stages import calibrate, compute, inspect
from workers.stages.context import Context
from workers.stages.failures import StageFailed
from workers.stages.part_files import read_part, write_part

PLAN = "plan.json"
CHOICE = "choice.json"
TRIALS = "trials"
TRIED = 0.8
"""Part of this stage that trying methods takes, where it is asked for."""
SENSITIVITIES = "sensitivities"
SENSITIVITIES_FILE = "sensitivities.safetensors"


def run(context: Context, directory: Path) -> None:
    recipe, inventory = context.assignment.recipe, inspect.model_inventory(context)
    method = recipe.method
    tried = try_methods(context, directory / TRIALS) if method == AUTO else []
    name = best_of(context, tried) if method == AUTO else method
    measured = measured_once(context) if is_measured(name) else {}
    plan = measured_plan(inventory, name, context.ratio, measured, recipe.key_value_heads)
    plan = replace(plan, absorption_tokens=absorption_tokens(context, plan), criterion=criterion(context, plan))
    (directory / PLAN).write_text(json.dumps(plan.to_dict(), indent=1))
    (directory / CHOICE).write_text(json.dumps({trial.method: trial.perplexity for trial in tried}, indent=1))


def absorption_tokens(context: Context, plan: Plan) -> int:
    """Those that the recipe names; otherwise none, or as many as the published procedure takes."""
    fusion = context.assignment.recipe.fusion
    if fusion is not None and fusion.tokens is not None:
        return fusion.tokens
    if plan.method not in RESIZINGS or not RESIZINGS[plan.method].published:
        return 0
    return EPOCHS * calibrate.calibration(context).numel() * plan.removed


def criterion(context: Context, plan: Plan) -> str | None:
    """The one that the recipe names, or else the method's own; None where no block goes."""
    fusion = context.assignment.recipe.fusion
    named = None if fusion is None or not plan.removed else fusion.criterion
    return named or plan.criterion


def try_methods(context: Context, scratch: Path) -> list[Trial]:
    """What each method makes of the model in small; its parts wait in `scratch`, which is gone afterwards."""
    seed = context.assignment.recipe.seed
    count = len(candidates(inspect.model_inventory(context), context.ratio))
    model = compute.open_model(context, inspect.model_dir(context))
    parts = itertools.count()

    def keep(part: CompressedPart) -> CompressedPart:
        path = scratch / str(next(parts))
        write_part(path, part)
        return read_part(path)

    tried: list[Trial] = []
    scratch.mkdir(exist_ok=True)
    context.progress(0.0, "trying methods")
    for trial in trials(model, context.ratio, calibrate.calibration(context), keep=keep, seed=seed):
        tried.append(trial)
        found = ", ".join(f"{each.method} {each.perplexity:.2f}" for each in tried)
        context.progress(len(tried) / count * TRIED, f"trying methods; perplexity on text kept back: {found}")
    shutil.rmtree(scratch)
    return tried


def best_of(context: Context, tried: Sequence[Trial]) -> str:
    """The method that left the lowest perplexity. Raises StageFailed where none left a model that predicts."""
    if not tried:
        reached = range_of(inspect.model_inventory(context), AUTO)
        raise StageFailed(
            "no_method_fits",
            f"no method of 'auto' made a working model at ratio {context.ratio:g}; ask for another ratio between "
            f"{reached.lowest:.2f} and {reached.highest:.2f}, or name a method",
        )
    return min(tried, key=lambda trial: trial.perplexity).method


def trials_of(context: Context) -> dict[str, float]:
    """The perplexity that each tried method left, by its name; nothing where the recipe named one."""
    found: dict[str, float] = json.loads((context.results[Stage.PLAN] / CHOICE).read_text())
    return found


def measured_once(context: Context) -> dict[str, Sensitivity]:
    """What any attempt has measured for any ratio, or else what is measured now."""
    directory = context.shared.finished(SENSITIVITIES)
    if directory is None:
        save_file(to_tensors(measure_sensitivities(context)), context.shared.begin(SENSITIVITIES) / SENSITIVITIES_FILE)
        directory = context.shared.finish(SENSITIVITIES)
    return from_tensors(load_file(directory / SENSITIVITIES_FILE))


def measure_sensitivities(context: Context) -> dict[str, Sensitivity]:
    model = compute.open_model(context, inspect.model_dir(context))
    parts = part_count(model.inventory)
    found: dict[str, Sensitivity] = {}
    context.progress(0.0, "measuring what the output feels")
    for done, part in enumerate(measure(model, calibrate.calibration(context), seed=context.assignment.recipe.seed), 1):
        found |= part
        context.progress(done / parts, "measuring what the output feels")
    return found


def plan_of(context: Context) -> Plan:
    return Plan.from_dict(json.loads((context.results[Stage.PLAN] / PLAN).read_text()))


def sensitivities_of(context: Context) -> dict[str, Sensitivity]:
    """What the plan was made from; nothing for a method that does not ask."""
    return measured_once(context) if is_measured(plan_of(context).method) else {}
