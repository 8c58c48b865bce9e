"""The model that the result is held against on request: as small, but by dropping blocks alone."""

from pathlib import Path

from workers.compression.evaluation.size import stored_size
from workers.compression.formats import writer_of
from workers.compression.overlay import Overlay
from workers.compression.spec.formats import MAIN
from workers.compression.steps.influence import influence_text
from workers.compression.steps.remove import blocks_to_drop, drop
from workers.stages import calibrate, compute, inspect
from workers.stages.context import Context


def write_baseline(context: Context, result: Path, destination: Path) -> None:
    """Writes the original, with as many blocks dropped as bring it nearest to the size of the `result`."""
    model = compute.open_model(context, inspect.model_dir(context))
    count = blocks_to_drop(model.inventory, stored_size(result).parameters)
    ids = influence_text(calibrate.calibration(context))
    writer_of(MAIN).write(Overlay.open(inspect.model_dir(context), drop(model, ids, count)), destination)
