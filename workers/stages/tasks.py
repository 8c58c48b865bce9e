"""Ask original and result tasks of lm-eval, where the recipe names some.

What each model came to on each task is kept as soon as it is known: a killed worker costs one task, and several ratios
ask the original once.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from app.contract.codes import FailureCode
from app.contract.job import Metrics, TaskResult
from app.contract.recipe import Recipe
from workers.compression.models.streamed import StreamedModel
from workers.messages import AttemptFailed
from workers.stages import compute, inspect, memory
from workers.stages.context import Context
from workers.stages.workbench import Workbench

LIBRARY = "lm_eval"
KEPT = "tasks"
"""Under this name the workbench keeps what models came to."""

AFTER_THE_REST = 0.95
"""How much of its stage is done when tasks begin: all that is known of how long they take."""

RESULTS: TypeAdapter[dict[str, TaskResult]] = TypeAdapter(dict[str, TaskResult])
TOO_LARGE = "the model does not fit into the worker's memory"


def require_library(recipe: Recipe) -> None:
    """Raises AttemptFailed, before anything was computed, where the recipe needs what is not installed here."""
    if recipe.evaluation.tasks and find_spec(LIBRARY) is None:
        raise AttemptFailed(FailureCode.MISSING_EXTRA, "this worker cannot run tasks: install modelpress[tasks] there")


def require_data(context: Context) -> None:
    """Raises UnknownTask, TaskDataMissing or TaskNotRunnable, long before the tasks are asked."""
    names = context.assignment.recipe.evaluation.tasks
    if not names:
        return
    context.progress(0.0, "looking for the tasks and their data")
    # A fresh process: the library and the data take memory that the model needs until then.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as elsewhere:
        elsewhere.submit(try_to_load, names, context.assignment.tasks_dir).result()


def try_to_load(names: Sequence[str], folder: Path | None) -> None:
    # It imports the optional library.
    from workers.compression.evaluation.tasks import load

    load(names, folder)


def with_tasks(context: Context, directories: Sequence[Path], measured: Sequence[Metrics]) -> list[Metrics]:
    """What was measured of the models in `directories`, and what they come to on the recipe's tasks."""
    if not context.assignment.recipe.evaluation.tasks:
        return list(measured)
    return [
        metrics.model_copy(update=asked(context, directory))
        for directory, metrics in zip(directories, measured, strict=True)
    ]


def asked(context: Context, directory: Path) -> dict[str, Any]:
    """The fields of Metrics that are about tasks."""
    model = compute.open_model(context, directory)
    if not memory.holds(context, model):
        return {"tasks_skipped": TOO_LARGE}
    return {"tasks": results(context, directory, model)}


def results(context: Context, directory: Path, model: StreamedModel) -> dict[str, TaskResult]:
    """What any attempt has found, and what is found now."""
    names = context.assignment.recipe.evaluation.tasks
    known = {name: found for name in names if (found := kept(context, directory, name)) is not None}
    missing = [name for name in names if name not in known]
    if missing:
        known |= ask(context, directory, model, missing)
    return {task: result for name in names for task, result in known[name].items()}


def ask(
    context: Context, directory: Path, model: StreamedModel, names: Sequence[str]
) -> dict[str, dict[str, TaskResult]]:
    # It imports the optional library.
    from workers.compression.evaluation.tasks import load, scores

    context.progress(AFTER_THE_REST, "loading tasks")
    tasks, whole = load(names, context.assignment.tasks_dir), model.whole()
    answered = {}
    for name in names:
        context.progress(AFTER_THE_REST, f"task {part_of(context, directory, name)}")
        tokenizer = inspect.tokenizer_of(context)
        found = scores(tasks[name], whole, tokenizer, limit=context.assignment.recipe.evaluation.task_limit)
        answered[name] = {task: TaskResult.model_validate(asdict(score)) for task, score in found.items()}
        keep(context, directory, name, answered[name])
    return answered


def kept(context: Context, directory: Path, name: str) -> dict[str, TaskResult] | None:
    path = bench_of(context, directory).finished_part(KEPT, part_of(context, directory, name))
    return None if path is None else RESULTS.validate_json(path.read_bytes())


def keep(context: Context, directory: Path, name: str, found: dict[str, TaskResult]) -> None:
    bench = bench_of(context, directory)
    path = bench.begin(KEPT) / part_of(context, directory, name)
    path.write_bytes(RESULTS.dump_json(found))
    bench.finish_part(path)


def bench_of(context: Context, directory: Path) -> Workbench:
    """What the original comes to is the same for every ratio."""
    return context.shared if is_original(context, directory) else context.bench


def part_of(context: Context, directory: Path, name: str) -> str:
    """Such as 'arc_easy of original'."""
    return f"{name} of {'original' if is_original(context, directory) else directory.name}"


def is_original(context: Context, directory: Path) -> bool:
    return directory == inspect.model_dir(context)
