"""Gather the report on a job from the results of its stages; plots and model cards are made from it alone."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from modelpress.contract.job import inferred_warning
from modelpress.contract.report import (
    CompressionReport,
    DistillationPhase,
    DistillationReport,
    RemovedBlock,
    RemovedExperts,
    RoundedMatrix,
    RoundingReport,
    SiteReport,
    TeacherText,
)
from modelpress.spec.architectures import is_registered
from modelpress.spec.codes import CODES
from modelpress.spec.config import read_config
from modelpress.spec.families import tables_of
from modelpress.spec.formats import FORMATS, MAIN, Format
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.plan import Plan
from modelpress.spec.sizes import matrices, plain_bytes
from modelpress.spec.steps import Fuse, Remove
from workers.compression.overlay import Overlay
from workers.stages import compress, distill, evaluate, inspect, plan, quantise, teacher_text, tune, write
from workers.stages.context import Context
from workers.stages.curve import joined
from workers.stages.reproducibility import reproducibility

REPORT = "compression_report.json"


def write_report(context: Context, package: Path) -> None:
    """Write report, plots and model cards into `package`, which already holds the weights."""
    # Matplotlib takes memory that the model needs, and is needed once, at the end.
    from workers.report.card import format_card, model_card
    from workers.report.original import CARD, front_matter_of
    from workers.report.plots import draw

    report = gather(context)
    (package / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    plots = draw(report, package)
    original = front_matter_of(context.assignment.model_path)
    card = model_card(report, original, plots, own_code="auto_map" in read_config(package))
    (package / CARD).write_text(card, encoding="utf-8")
    for name in report.formats:
        if name != MAIN:
            (package / name / CARD).write_text(format_card(report, FORMATS[name], original), encoding="utf-8")


def gather(context: Context) -> CompressionReport:
    """Return the report on this context's ratio."""
    recipe = context.assignment.recipe.at(context.ratio)
    planned, metrics = plan.plan_of(context), evaluate.metrics(context)
    return CompressionReport(
        job_id=context.assignment.job_id,
        recipe=recipe,
        method=planned.method,
        tried=plan.trials_of(context),
        target_ratio=context.ratio,
        achieved_ratio=metrics.ratio,
        warnings=warnings(context),
        metrics=metrics,
        sites=tuple(sites(context)),
        removed_blocks=tuple(removed_blocks(context, planned)),
        removed_experts=tuple(removed_experts(context)),
        steps=planned.steps,
        rounding=tuple(rounding(context, form) for form in quantise.rounded_formats(context)),
        teacher_text=written_text(context),
        distillation=distillation(context),
        formats=tuple(form.name for form in write.written(context)),
        reproducibility=reproducibility(context),
    )


def warnings(context: Context) -> tuple[str, ...]:
    """Return what should be known of the model before its result is used."""
    model_type = inspect.model_inventory(context).model_type
    return () if is_registered(model_type) else (inferred_warning(model_type),)


def removed_blocks(context: Context, planned: Plan) -> Iterator[RemovedBlock]:
    """Yield the removed blocks in the order of their removal, with the scores of the blocks that were compared."""
    removal = planned.step(Remove) or planned.step(Fuse)
    if removal is None:
        return
    for part in compress.finished_parts(context):
        for block in part.removed:
            yield RemovedBlock(block=block, criterion=removal.criterion, scores=dict(part.scores))


def removed_experts(context: Context) -> Iterator[RemovedExperts]:
    """Yield, for every mixture that lost experts, which stay and which the calibration text never reached."""
    for part in compress.finished_parts(context):
        for block, kept in part.experts.items():
            yield RemovedExperts(block=block, kept=kept, unreached=part.unreached)


def sites(context: Context) -> Iterator[SiteReport]:
    """Yield, for every matrix of the original, its new structure, its stored parameters and its relative error."""
    parts = compress.finished_parts(context)
    overlay = Overlay.open(inspect.model_dir(context), parts)
    errors = {name: error for part in parts for name, error in part.errors.items()}
    inventory, structures = overlay.original.inventory, overlay.structures
    for site in (*tables_of(inventory), *inventory.sites):
        form = structures.get(site.name)
        yield SiteReport(
            name=site.name,
            block=site.block,
            role=role(site, inventory),
            structure=None if form is None else dict(form),
            parameters_before=site.out_features * site.in_features,
            parameters_after=overlay.parameters_of(site.name),
            relative_error=None if site.block in overlay.removed else errors.get(site.name),
        )


def rounding(context: Context, form: Format) -> RoundingReport:
    """Return how the matrices of the finished model are stored in a format whose weights are rounded."""
    overlay, found = quantise.overlay_for(context, form), quantise.rounded(context, form)
    parts, curve = quantise.parts_for(context, form), tune.curve(context, form)
    errors = {name: error for part in parts if part.encodings for name, error in part.errors.items()}
    return RoundingReport(
        format=form.name,
        matrices=tuple(rounded_matrix(site, found, errors.get(site.name)) for site in matrices(overlay.inventory)),
        distillation=None if curve is None else DistillationReport.model_validate(asdict(curve)),
    )


def rounded_matrix(site: Site, found: quantise.Rounding, error: float | None) -> RoundedMatrix:
    """Return how one matrix is stored."""
    name = found.step.codes.get(site.name)
    size = plain_bytes(site) if name is None else CODES[name].bytes(site.out_features, site.in_features)
    return RoundedMatrix(
        name=site.name,
        code=name,
        bits=8 * size / (site.out_features * site.in_features),
        bytes=size,
        divergence=found.costs.get(site.name),
        relative_error=error if name is not None else None,
    )


def role(site: Site, inventory: Inventory) -> str:
    """Return the name of a matrix within its block, or its whole name outside the blocks."""
    return site.name.removeprefix(f"{inventory.block_prefix}.{site.block}.")


def written_text(context: Context) -> TeacherText | None:
    """Return the cost of the text that the teacher wrote; None if the recipe does not use it."""
    cost = teacher_text.cost_of(context)
    return None if cost is None else TeacherText.model_validate(asdict(cost))


def distillation(context: Context) -> DistillationReport | None:
    """Return the report on the distillation; None if the recipe asks for none."""
    curves = distill.curves(context)
    if not curves:
        return None
    return DistillationReport.model_validate(asdict(joined(curves)) | {"phases": tuple(phases(context))})


def phases(context: Context) -> Iterator[DistillationPhase]:
    """Yield, for each phase, the names of the parts compressed in it and the outcome of its training."""
    parts = compress.finished_parts(context)
    for phase, curve in zip(compress.schedule(context), distill.curves(context), strict=True):
        made = (parts[number] for number in range(phase.first, phase.trained))
        yield DistillationPhase(
            compressed=tuple(part.name for part in made if part.structures),
            tokens=curve.tokens,
            restarts=curve.restarts,
            loss=curve.points[-1].loss,
        )
