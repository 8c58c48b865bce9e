"""What lies beside the weights: a report for programs and a model card for people."""

from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from app.contract.job import Comparison
from app.contract.recipe import Recipe
from workers.stages import compress, evaluate, plan
from workers.stages.context import Context

REPORT = "compression_report.json"
CARD = "README.md"
SCHEMA_VERSION = 1


class SiteReport(BaseModel):
    """One matrix of the original and what became of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    structure: dict[str, object]
    relative_error: float


class RemovedBlock(BaseModel):
    """A block of the original that is gone, and by what: the scores of all blocks when it was chosen, the least of
    which went."""

    model_config = ConfigDict(frozen=True)

    block: int
    scores: dict[int, float]


class CompressionReport(BaseModel):
    """`compression_report.json` of a package.

    `removed_blocks` are in the order in which they went; `intermediate_size` is that of narrowed MLPs, or None.
    `method` is the recipe's, or what `auto` chose; `tried` says what perplexity each method that it tried left on text
    kept back for that.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    job_id: str
    recipe: Recipe
    target_ratio: float
    achieved_ratio: float
    metrics: Comparison
    method: str
    tried: dict[str, float]
    sites: tuple[SiteReport, ...]
    removed_blocks: tuple[RemovedBlock, ...]
    intermediate_size: int | None
    versions: dict[str, str]


def write_report(context: Context, package: Path) -> None:
    metrics = evaluate.metrics(context)
    recipe, planned = context.assignment.recipe, plan.plan_of(context)
    report = CompressionReport(
        job_id=context.assignment.job_id,
        recipe=recipe,
        target_ratio=recipe.target_ratio,
        achieved_ratio=metrics.ratio,
        metrics=metrics,
        method=planned.method,
        tried=plan.trials_of(context),
        sites=tuple(
            SiteReport(name=name, structure=dict(structure), relative_error=part.errors[name])
            for part in compress.FinishedParts(context)
            for name, structure in part.structures.items()
        ),
        removed_blocks=tuple(
            RemovedBlock(block=block, scores=dict(part.scores))
            for part in compress.FinishedParts(context)
            for block in part.removed
        ),
        intermediate_size=planned.intermediate_size,
        versions={name: version(name) for name in ("modelpress", "torch", "transformers", "safetensors")},
    )
    (package / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    card = package / CARD
    text = card.read_text(encoding="utf-8") + "\n" + results_table(metrics)
    card.unlink()
    card.write_text(text, encoding="utf-8")


def results_table(metrics: Comparison) -> str:
    """The comparison in Markdown."""
    before, after = metrics.before, metrics.after
    rows = [
        ("stored parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("bytes of the weights", f"{before.bytes:,}", f"{after.bytes:,}"),
    ]
    rows += [
        (f"perplexity, {name}", f"{value:.2f}", f"{after.perplexity[name]:.2f}")
        for name, value in before.perplexity.items()
    ]
    lines = ["## Results", "", "| | original | compressed |", "|---|---|---|"]
    lines += [f"| {name} | {old} | {new} |" for name, old, new in rows]
    return "\n".join(lines) + "\n"
