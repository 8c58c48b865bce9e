"""Round the weights of the finished model, for each format that holds rounded weights. Each part is durable.

The budget of a format is the bytes that the recipe's ratio leaves, less what its file holds besides weights. The costs
of the codes are measured on the model as structure and training have left it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from modelpress.spec.codes import CODES
from modelpress.spec.formats import FORMATS, Format
from modelpress.spec.inventory import Inventory
from modelpress.spec.precision import PLAIN_BITS
from modelpress.spec.ranges import TOLERANCE, RatioOutOfRange
from modelpress.spec.rounding import Budget, choose_codes
from modelpress.spec.sizes import bytes_before, bytes_of, choices, matrices
from modelpress.spec.steps import Quantise
from workers.compression import pipeline
from workers.compression.formats import writer_of
from workers.compression.math.sensitivity import Sensitivity, from_tensors, measure, to_tensors
from workers.compression.models.edited import EditedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart
from workers.compression.steps.code_costs import code_costs
from workers.stages import calibrate, compress, compute, inspect, names
from workers.stages.context import Context
from workers.stages.part_files import PartFiles, StagePlace
from workers.stages.plan import plan_of
from workers.stages.stage import Stage

SENSITIVITIES = "sensitivities.safetensors"
CHOSEN = "chosen.json"

MEASURING = 0.22
"""Fraction of this stage in which sensitivities are measured, for all formats."""
CHOOSING = 0.2
"""Fraction of a format's time in which the costs of its codes are measured."""


def run(context: Context, directory: Path) -> None:
    """Round the model for each format, unless the plan rounds nothing."""
    forms = rounded_formats(context)
    share = (1 - MEASURING) / max(len(forms), 1)
    for number, form in enumerate(forms):
        begun = MEASURING + number * share
        round_for(context.within(begun, begun + share), form, sensitivities_of(context.within(0.0, MEASURING)))


def rounded_formats(context: Context) -> tuple[Format, ...]:
    """Return the recipe's formats in which weights are rounded."""
    if not plan_of(context).rounds:
        return ()
    every = (FORMATS[name] for name in context.assignment.recipe.formats)
    return tuple(form for form in every if form.codes is not None)


def round_for(context: Context, form: Format, sensitivities: Mapping[str, Sensitivity]) -> None:
    """Choose the codes of a format and round the model to them, part by part."""
    edited = edited_model(context)
    step = chosen(context, form, edited, sensitivities).step
    labels = step.labels(inspect.model_inventory(context), len(edited.overlay.removed))
    parts = PartFiles(context.bench, [StagePlace(result_of(form), range(len(labels)))], place_of(context, form))
    if parts:
        context.resumed()
    plan = plan_of(context).model_copy(update={"steps": (step,)})
    seed = context.assignment.recipe.seed
    for done in pipeline.compress(
        edited, plan, calibrate.calibration(context), parts, sensitivities=sensitivities, seed=seed
    ):
        fraction = CHOOSING + (1 - CHOOSING) * done / len(labels)
        context.progress(fraction, f"{form.name}: {labels[min(done, len(labels) - 1)].text}")


def edited_model(context: Context) -> EditedModel:
    """Return the model as structure and training have left it."""
    return EditedModel(compute.open_model(context, inspect.model_dir(context)), compress.finished_parts(context))


class Rounding(BaseModel):
    """The step that rounds a model for a format, and the estimated cost of each matrix in nats per token."""

    model_config = ConfigDict(frozen=True)

    step: Quantise
    costs: Mapping[str, float]


def chosen(context: Context, form: Format, edited: EditedModel, sensitivities: Mapping[str, Sensitivity]) -> Rounding:
    """Return how the model is rounded for a format; that is chosen once and then kept."""
    kept = context.bench.finished_part(result_of(form), CHOSEN)
    if kept is not None:
        return Rounding.model_validate_json(kept.read_bytes())
    inventory, limits = edited.inventory, plan_of(context).limits
    offered = {site.name: choices(form, inventory, site, limits) for site in matrices(inventory)}
    costs: dict[str, dict[str, float]] = {}
    parts = len(edited.kept) + 1
    for done, part in enumerate(code_costs(edited, calibrate.calibration(context), sensitivities, offered), 1):
        costs |= part
        context.progress(min(done / parts, 1.0) * CHOOSING, f"{form.name}: choosing the bits of each matrix")
    before = bytes_before(inspect.model_inventory(context))
    left = int(before / context.ratio) - writer_of(form.name).overhead(edited.overlay)
    budget = Budget(left, edited.overlay.dtype.itemsize)
    codes = choose_codes(inventory, form, limits, costs, budget)
    require_size(form, inventory, codes, budget)
    step = Quantise(format=form.name, codes=codes)
    found = Rounding(step=step, costs={site: costs[site][code] for site, code in codes.items()})
    path = place_of(context, form) / CHOSEN
    path.write_text(found.model_dump_json(indent=1))
    context.bench.finish_part(path)
    return found


def require_size(form: Format, inventory: Inventory, codes: Mapping[str, str], budget: Budget) -> None:
    """Raise RatioOutOfRange if the weights take more bytes than the budget leaves, as far as TOLERANCE allows."""
    taken = {site: CODES[code] for site, code in codes.items()}
    size = bytes_of(inventory, lambda site: taken.get(site.name), budget.number_bytes)
    if size > budget.bytes * (1 + TOLERANCE):
        raise RatioOutOfRange(
            f"the weights take {size} bytes as {form.name} with the fewest bits that it holds, and target_ratio leaves "
            f"{budget.bytes}; send a lower target_ratio"
        )


def sensitivities_of(context: Context) -> dict[str, Sensitivity]:
    """Return the sensitivities of the model as structure and training have left it; they are measured once."""
    kept = context.bench.finished_part(names.QUANTISE, SENSITIVITIES)
    if kept is not None:
        return from_tensors(load_file(kept))
    found: dict[str, Sensitivity] = {}
    edited, ids, seed = edited_model(context), calibrate.calibration(context), context.assignment.recipe.seed
    parts = len(edited.kept) + 1
    for done, some in enumerate(measure(edited, ids, seed=seed), 1):
        found |= some
        context.progress(min(1.0, done / parts), "measuring what rounding costs")
    path = context.bench.begin(names.QUANTISE) / SENSITIVITIES
    save_file(to_tensors(found), path)
    context.bench.finish_part(path)
    return found


def rounded(context: Context, form: Format) -> Rounding:
    """Return how the model was rounded for one of the `rounded_formats`."""
    return Rounding.model_validate_json(context.bench.part(result_of(form), CHOSEN).read_bytes())


def parts_for(context: Context, form: Format) -> Sequence[CompressedPart]:
    """Return all parts of the model in a format: those of structure and training, the rounded ones, the tuned one."""
    finished = list(compress.finished_parts(context))
    if form not in rounded_formats(context):
        return finished
    count = part_count(context, form)
    places = [StagePlace(result_of(form), range(count)), StagePlace(tuned(form), range(count, count + 1))]
    return [*finished, *PartFiles(context.bench, places)]


def part_count(context: Context, form: Format) -> int:
    """Return the number of parts that rounding makes for a format."""
    removed = {block for part in compress.finished_parts(context) for block in part.removed}
    return len(rounded(context, form).step.labels(inspect.model_inventory(context), len(removed)))


def overlay_for(context: Context, form: Format) -> Overlay:
    """Return the finished model in a format."""
    return Overlay.open(inspect.model_dir(context), parts_for(context, form))


def result_of(form: Format) -> str:
    """Return the name under which a format's rounded parts are stored."""
    return f"{names.QUANTISE}-{form.name}"


def tuned(form: Format) -> str:
    """Return the name under which the part is stored that the training of a format's rounded model leaves."""
    return f"{names.TUNE}-{form.name}"


def place_of(context: Context, form: Format) -> Path:
    """Return this attempt's directory for a format's rounded parts."""
    return context.bench.begin(result_of(form))


STAGE = Stage(names.QUANTISE, run, wanted=lambda recipe: recipe.precision != PLAIN_BITS)
