"""Run the lm-eval tasks that the recipe names on the original and the result.

The result of each task is durable as soon as it is known: a killed worker repeats one task at most, and several ratios
run the original once.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Metrics, TaskResult
from modelpress.contract.recipe import Recipe
from workers.compression.models.streamed import StreamedModel
from workers.messages import AttemptFailed
from workers.stages import compute, inspect, memory
from workers.stages.context import Context
from workers.stages.workbench import Workbench

LIBRARY = "lm_eval"
STORED = "tasks"
"""Name of the result whose directory holds the task results."""

AFTER_THE_REST = 0.95
"""Fraction of the stage reported while tasks run: nobody knows how long they take."""

RESULTS: TypeAdapter[dict[str, TaskResult]] = TypeAdapter(dict[str, TaskResult])
TOO_LARGE = "the model does not fit into the worker's memory"


def require_library(recipe: Recipe) -> None:
    """Check, before anything is computed, that lm-eval is installed if the recipe names tasks.

    Raises:
        AttemptFailed: it is not.
    """
    if recipe.evaluation.tasks and find_spec(LIBRARY) is None:
        raise AttemptFailed(
            FailureCode.MISSING_EXTRA,
            "this worker lacks lm-eval, which runs the tasks: install modelpress[tasks] there",
        )


def require_data(context: Context) -> None:
    """Check, long before the tasks run, that they exist and that their data is on this machine.

    Raises:
        UnknownTask: lm-eval knows no task of a name.
        TaskDataMissing: the data of a task is not stored here.
        TaskNotRunnable: a task is broken, or needs more than text.
    """
    names = context.assignment.recipe.evaluation.tasks
    if not names:
        return
    context.progress(0.0, "looking for the tasks and their data")
    # In a fresh process, since library and data would keep memory that the model needs.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as elsewhere:
        elsewhere.submit(try_to_load, names, context.assignment.tasks_dir).result()


def try_to_load(names: Sequence[str], folder: Path | None) -> None:
    """Load the tasks and their data, and drop them; the operator's own tasks are in `folder`."""
    # This module imports the optional library.
    from workers.compression.evaluation.tasks import load

    load(names, folder)


def with_tasks(context: Context, directories: Sequence[Path], measured: Sequence[Metrics]) -> list[Metrics]:
    """Return `measured`, the metrics of the models in `directories`, completed by their task results."""
    if not context.assignment.recipe.evaluation.tasks:
        return list(measured)
    return [
        metrics.model_copy(update=task_fields(context, directory))
        for directory, metrics in zip(directories, measured, strict=True)
    ]


def task_fields(context: Context, directory: Path) -> dict[str, Any]:
    """Return the fields of Metrics about tasks for the model in `directory`."""
    model = compute.open_model(context, directory)
    if not memory.holds(context, model):
        return {"tasks_skipped": TOO_LARGE}
    return {"tasks": results(context, directory, model)}


def results(context: Context, directory: Path, model: StreamedModel) -> dict[str, TaskResult]:
    """Return the model's result on each task, running those that no attempt has stored."""
    names = context.assignment.recipe.evaluation.tasks
    known = {name: found for name in names if (found := stored_result(context, directory, name)) is not None}
    missing = [name for name in names if name not in known]
    if missing:
        known |= run_tasks(context, directory, model, missing)
    return {task: result for name in names for task, result in known[name].items()}


def run_tasks(
    context: Context, directory: Path, model: StreamedModel, names: Sequence[str]
) -> dict[str, dict[str, TaskResult]]:
    """Run the tasks on the model, store each result, and return all of them by the recipe's name and lm-eval's name."""
    # This module imports the optional library.
    from workers.compression.evaluation.tasks import load, scores

    context.progress(AFTER_THE_REST, "loading tasks")
    tasks, whole = load(names, context.assignment.tasks_dir), model.whole()
    answered = {}
    for name in names:
        context.progress(AFTER_THE_REST, f"task {part_of(context, directory, name)}")
        tokenizer = inspect.tokenizer_of(context)
        found = scores(tasks[name], whole, tokenizer, limit=context.assignment.recipe.evaluation.task_limit)
        answered[name] = {task: TaskResult.model_validate(asdict(score)) for task, score in found.items()}
        store_result(context, directory, name, answered[name])
    return answered


def stored_result(context: Context, directory: Path, name: str) -> dict[str, TaskResult] | None:
    """Return the stored result of one of the recipe's tasks, or None."""
    path = bench_of(context, directory).finished_part(STORED, part_of(context, directory, name))
    return None if path is None else RESULTS.validate_json(path.read_bytes())


def store_result(context: Context, directory: Path, name: str, found: dict[str, TaskResult]) -> None:
    """Store the result of one of the recipe's tasks durably."""
    bench = bench_of(context, directory)
    path = bench.begin(STORED) / part_of(context, directory, name)
    path.write_bytes(RESULTS.dump_json(found))
    bench.finish_part(path)


def bench_of(context: Context, directory: Path) -> Workbench:
    """Return the workbench for a model's results; all ratios share those of the original."""
    return context.shared if is_original(context, directory) else context.bench


def part_of(context: Context, directory: Path, name: str) -> str:
    """Return the name of the stored result, such as 'arc_easy of original'."""
    return f"{name} of {'original' if is_original(context, directory) else directory.name}"


def is_original(context: Context, directory: Path) -> bool:
    """Return whether `directory` holds the original model."""
    return directory == inspect.model_dir(context)
