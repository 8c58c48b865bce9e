"""Measure how an error in each matrix affects the model's output, and divide the parameter budget accordingly.

The measurements are stored outside the results of a ratio: a recipe with several ratios measures once.
"""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from modelpress.contract.codes import FailureCode
from modelpress.spec.families import KroneckerFamily
from modelpress.spec.formats import FORMATS, Format
from modelpress.spec.methods import METHODS, Need, method_of, planner_of
from modelpress.spec.plan import Plan
from modelpress.spec.sizes import PLAIN_BYTES, Candidate, Wanted, candidates, matrices
from modelpress.spec.steps import factor_labels
from workers.compression.choice import Trial, trials
from workers.compression.formats import writer_of
from workers.compression.math.sensitivity import Sensitivity, from_tensors, measure, site_errors, to_tensors
from workers.compression.overlay import Overlay
from workers.messages import AttemptFailed
from workers.stages import admission, calibrate, compute, inspect, names
from workers.stages.context import Context
from workers.stages.part_files import ScratchFiles
from workers.stages.stage import Stage

PLAN = "plan.json"
CHOICE = "choice.json"
TRIALS = "trials"
TRIED = 0.8
"""Fraction of this stage that trials take, if the method needs them."""
SENSITIVITIES = "sensitivities"
SENSITIVITIES_FILE = "sensitivities.safetensors"


def run(context: Context, directory: Path) -> None:
    """Choose the method and how much of the ratio is structure, and write the plan and the trials' perplexities."""
    inventory, recipe = inspect.model_inventory(context), context.assignment.recipe
    formats = tuple(FORMATS[name] for name in recipe.formats)
    wanted = Wanted(
        context.ratio, recipe.precision, formats, bytes_besides(context, formats), recipe.embedding_precision
    )
    found = candidates(inventory, recipe.method, wanted)
    tried: list[Trial] = []
    chosen = found[0]
    if len(found) > 1:
        tried = try_methods(context, found, directory / TRIALS)
        chosen = best_of(context, tried)
    plan = planned(context, chosen)
    admission.admit(context, inventory, plan.parameters_after)
    (directory / PLAN).write_text(plan.model_dump_json(indent=1))
    perplexities = {trial.candidate.method.name: trial.perplexity for trial in tried}
    (directory / CHOICE).write_text(json.dumps(perplexities, indent=1))


def bytes_besides(context: Context, formats: Sequence[Format]) -> int:
    """Return what the files' weights take beyond 16 bits a number, apart from matrices that may be rounded.

    That is the width of wider numbers, and the overhead of the format that has the most.
    """
    overlay = Overlay.open(inspect.model_dir(context))
    in_matrices = sum(site.out_features * site.in_features for site in matrices(overlay.inventory))
    wider = (overlay.dtype.itemsize - PLAIN_BYTES) * (overlay.inventory.total_parameters - in_matrices)
    return wider + max(
        (writer_of(form.name).overhead(overlay) for form in formats if form.codes is not None), default=0
    )


def planned(context: Context, candidate: Candidate) -> Plan:
    """Return the plan of a candidate, from measured sensitivities where its method needs them."""
    method = planner_of(candidate.method)
    measured = (
        site_errors(measured_once(context, method.tiled(candidate.method)))
        if Need.SENSITIVITIES in method.needs
        else {}
    )
    plan = method.plan(inspect.model_inventory(context), candidate.structure, candidate.method, measured)
    embedding = context.assignment.recipe.embedding_precision
    return plan.model_copy(update={"precision": candidate.precision, "embedding_precision": embedding})


def try_methods(context: Context, asked: Sequence[Candidate], scratch: Path) -> list[Trial]:
    """Compress the model with each candidate on a few tokens, and return the trials that left a finite perplexity.

    The parts of the trials lie in the directory `scratch`, which is removed at the end.
    """
    model = compute.open_model(context, inspect.model_dir(context))
    seed = context.assignment.recipe.seed
    directories = (scratch / str(number) for number in itertools.count())
    tried: list[Trial] = []
    shutil.rmtree(scratch, ignore_errors=True)
    context.progress(0.0, "trying methods")
    for trial in trials(
        model,
        asked,
        calibrate.calibration(context),
        store=lambda: ScratchFiles(next(directories)),
        seed=seed,
    ):
        tried.append(trial)
        found = ", ".join(f"{each.candidate.method.name} {each.perplexity:.2f}" for each in tried)
        fraction = len(tried) / len(asked) * TRIED
        context.progress(fraction, f"trying methods; perplexity on held-out text: {found}")
    shutil.rmtree(scratch, ignore_errors=True)
    return tried


def best_of(context: Context, tried: Sequence[Trial]) -> Candidate:
    """Return the candidate whose trial left the lowest perplexity.

    Raises:
        AttemptFailed: no trial left a model that predicts text.
    """
    if not tried:
        asked = context.assignment.recipe.method
        reached = method_of(asked).range(inspect.model_inventory(context), asked)
        raise AttemptFailed(
            FailureCode.NO_METHOD_FITS,
            f"no method of {asked.name!r} left a working model at ratio {context.ratio:g}; send another target_ratio "
            f"between {reached.lowest:.2f} and {reached.highest:.2f}, or name a method",
        )
    return min(tried, key=lambda trial: trial.perplexity).candidate


def trials_of(context: Context) -> dict[str, float]:
    """Return the perplexity that each tried method left, by its name; empty if the recipe named a method."""
    found: dict[str, float] = json.loads((context.results[names.PLAN] / CHOICE).read_text())
    return found


def measured_once(context: Context, tiled: KroneckerFamily | None) -> dict[str, Sensitivity]:
    """Return the sensitivities that any attempt has stored for any ratio, or measure and store them."""
    directory = context.shared.finished(SENSITIVITIES)
    if directory is None:
        save_file(
            to_tensors(measure_sensitivities(context, tiled)), context.shared.begin(SENSITIVITIES) / SENSITIVITIES_FILE
        )
        directory = context.shared.finish(SENSITIVITIES)
    return from_tensors(load_file(directory / SENSITIVITIES_FILE))


def measure_sensitivities(context: Context, tiled: KroneckerFamily | None) -> dict[str, Sensitivity]:
    """Measure the sensitivity of the model's output to errors in each matrix, on the calibration text.

    `tiled` is the family of Kronecker structures whose tilings are measured as well; None for methods without one.
    """
    model = compute.open_model(context, inspect.model_dir(context))
    parts = len(factor_labels(model.inventory))
    found: dict[str, Sensitivity] = {}
    context.progress(0.0, "measuring sensitivities")
    ids, seed = calibrate.calibration(context), context.assignment.recipe.seed
    for done, part in enumerate(measure(model, ids, seed=seed, tiled=tiled), 1):
        found |= part
        context.progress(done / parts, "measuring sensitivities")
    return found


def plan_of(context: Context) -> Plan:
    """Return the plan for this context's ratio."""
    return context.hold("plan", lambda: Plan.model_validate_json((context.results[names.PLAN] / PLAN).read_bytes()))


def sensitivities_of(context: Context) -> dict[str, Sensitivity]:
    """Return the sensitivities that the plan was made from; empty for a method that does not need them."""
    asked, planned = context.assignment.recipe.method, plan_of(context).method
    options = asked if asked.name == planned else METHODS[planned].options()
    method = planner_of(options)
    return measured_once(context, method.tiled(options)) if Need.SENSITIVITIES in method.needs else {}


STAGE = Stage(names.PLAN, run)
