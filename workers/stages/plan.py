"""Measure what an error in each matrix does to the model's output, and share the budget accordingly."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from app.contract.job import Stage
from workers.compression.accounting import Plan
from workers.compression.allocation import measured_plan
from workers.compression.catalog import is_measured
from workers.compression.sensitivity import Sensitivity, from_tensors, measure, to_tensors
from workers.compression.sequential import part_count
from workers.stages import calibrate, compute, inspect
from workers.stages.context import Context

PLAN = "plan.json"
SENSITIVITIES = "sensitivities.safetensors"


def run(context: Context, directory: Path) -> None:
    recipe = context.assignment.recipe
    measured = measure_sensitivities(context) if is_measured(recipe.method) else {}
    plan = measured_plan(inspect.model_inventory(context), recipe.method, recipe.target_ratio, measured)
    save_file(to_tensors(measured), directory / SENSITIVITIES)
    (directory / PLAN).write_text(json.dumps(plan.to_dict(), indent=1))


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
    return from_tensors(load_file(context.results[Stage.PLAN] / SENSITIVITIES))
