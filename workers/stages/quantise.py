"""Round the finished weights to integers, and measure what is left of the result: a last step, where the recipe asks.

What is measured are the numbers that the integers stand for. They are computed with in floating point here, so speed is
that of the unrounded result; that the integers open as these numbers is what `verify` shows.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from app.contract.codes import FailureCode
from app.contract.job import Metrics, Stage
from app.contract.recipe import Recipe, Scheme
from workers.messages import AttemptFailed
from workers.stages import evaluate, inspect, tasks
from workers.stages.context import Context

LIBRARY = "compressed_tensors"
RESTORED = "restored"


def require_library(recipe: Recipe) -> None:
    """Raises AttemptFailed, before anything was computed, where the recipe needs what is not installed here."""
    if recipe.quantisation is not None and find_spec(LIBRARY) is None:
        raise AttemptFailed(
            FailureCode.MISSING_EXTRA, "this worker cannot quantise: install modelpress[quantisation] there"
        )


def run(context: Context, directory: Path) -> None:
    # It imports the optional library.
    from workers.compression.formats.compressed_tensors import quantise, restore

    scheme = cast("Scheme", context.assignment.recipe.quantisation)
    quantised, restored = directory / scheme, directory / RESTORED
    for unfinished in (quantised, restored):
        shutil.rmtree(unfinished, ignore_errors=True)
    context.progress(0.05, f"rounding the weights to {scheme}")
    written = quantise(context.results[Stage.EVALUATE] / evaluate.DRAFT, quantised, scheme)
    restore(quantised, restored)
    context.progress(0.1, "measuring the quantised result")
    measured = measure(context, restored).model_copy(update={"bytes": written.bytes})
    (directory / evaluate.METRICS).write_text(measured.model_dump_json(indent=1))
    evaluate.write_probe(context, restored, directory / evaluate.PROBE)
    shutil.rmtree(restored)


def measure(context: Context, restored: Path) -> Metrics:
    predictions = evaluate.predictions_of(context, [inspect.model_dir(context), restored])
    found = {dataset: result for dataset, (_, result) in predictions.items()}
    measured = evaluate.metrics_of(context, restored, found, is_original=False)
    return tasks.with_tasks(context, [restored], [measured])[0]


def quantised_dir(context: Context) -> Path | None:
    """Where the quantised result lies, under the name that it has in the package; None where there is none."""
    scheme = context.assignment.recipe.quantisation
    return None if scheme is None else context.results[Stage.QUANTISE] / scheme
