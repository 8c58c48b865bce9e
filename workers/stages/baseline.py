"""The baseline of an evaluation: the original with whole blocks dropped until it is about as small as the result."""

from pathlib import Path

from modelpress.spec.formats import MAIN
from workers.compression.evaluation.size import stored_size
from workers.compression.formats import writer_of
from workers.compression.overlay import Overlay
from workers.compression.steps.influence import influence_text
from workers.compression.steps.remove import blocks_to_drop, drop
from workers.stages import calibrate, compute, inspect
from workers.stages.context import Context


def write_baseline(context: Context, result: Path, destination: Path) -> None:
    """Write a checkpoint of the original with blocks dropped to `destination`.

    The number of dropped blocks is the one that brings its parameter count nearest to that of the checkpoint in
    `result`. The blocks with the least influence on the calibration text are dropped.
    """
    model = compute.open_model(context, inspect.model_dir(context))
    count = blocks_to_drop(model.inventory, stored_size(result).parameters)
    ids = influence_text(calibrate.calibration(context))
    writer_of(MAIN).write(Overlay.open(inspect.model_dir(context), drop(model, ids, count)), destination)
