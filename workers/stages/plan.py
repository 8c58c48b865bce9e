"""Decide which structure each matrix gets and how many parameters it may keep."""

import json
from pathlib import Path

from app.contract.job import Stage
from workers.compression.accounting import Plan, uniform_plan
from workers.stages import inspect
from workers.stages.context import Context

FILE = "plan.json"


def run(context: Context, directory: Path) -> None:
    recipe = context.assignment.recipe
    plan = uniform_plan(inspect.model_inventory(context), recipe.method, recipe.target_ratio)
    (directory / FILE).write_text(json.dumps(plan.to_dict(), indent=1))


def plan_of(context: Context) -> Plan:
    return Plan.from_dict(json.loads((context.results[Stage.PLAN] / FILE).read_text()))
