"""Train the rounded model of each format to predict what the original predicts, if the recipe asks for a distillation.

What a file stores as floating-point numbers is trained: the units of rounded matrices, norms, and what is not rounded.
The result is one more part for each format. Checkpoints are durable, as in the stage `distill`. One process trains.
"""

from pathlib import Path

from modelpress.spec.formats import Format
from modelpress.spec.precision import PLAIN_BITS
from workers.compression.models.edited import EditedModel
from workers.compression.training.parallel import SingleProcess
from workers.compression.training.rounded import rounded_student, tuned_part
from workers.stages import calibrate, names, quantise, training
from workers.stages.context import Context
from workers.stages.curve import Curve, read_curve
from workers.stages.part_files import file_name
from workers.stages.stage import Stage


def run(context: Context, directory: Path) -> None:
    """Train the model of each format whose weights are rounded."""
    forms = tuned_formats(context)
    for number, form in enumerate(forms):
        if not is_tuned(context, form):
            tune_for(context.within(number / len(forms), (number + 1) / len(forms)), form)


def tuned_formats(context: Context) -> tuple[Format, ...]:
    """Return the formats whose rounded model is trained."""
    if context.assignment.recipe.distillation is None or not training.tokens_of(context).rounded:
        return ()
    return quantise.rounded_formats(context)


def tune_for(context: Context, form: Format) -> None:
    """Train the rounded model of a format, and store what was trained as a part."""
    edited = EditedModel(training.opened(context), quantise.parts_for(context, form))
    student = rounded_student(edited)
    tokens = training.tokens_of(context).rounded
    run = training.Run(quantise.tuned(form), calibrate.distillation(context), tokens, prefix=f"{form.name}: ")
    last = training.train(context, student, run, SingleProcess())
    part = tuned_part(edited, student, last.trained)
    number = quantise.part_count(context, form)
    training.store(context, quantise.tuned(form), training.Trained(part, number, last, run))


def is_tuned(context: Context, form: Format) -> bool:
    """Return whether the training of a format has left its part."""
    number = quantise.part_count(context, form)
    return context.bench.finished_part(quantise.tuned(form), file_name(number)) is not None


def curve(context: Context, form: Format) -> Curve | None:
    """Return the loss curve of a format's training; None if its model was not trained once it was rounded."""
    if form not in tuned_formats(context):
        return None
    return read_curve(context.bench.part(quantise.tuned(form), training.curve_name(0)))


STAGE = Stage(names.TUNE, run, wanted=lambda recipe: recipe.distillation is not None and recipe.precision != PLAIN_BITS)
