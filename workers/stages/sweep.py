"""Assemble the package of a job with several ratios: a directory for each checkpoint, and a report on all of them.

Files are linked, which takes no time, so every attempt that gets this far assembles the package anew.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from modelpress.contract.job import SweepResult
from modelpress.contract.report import SweepReport
from workers.compression.formats.files import write_sums
from workers.messages import DoneReport
from workers.stages import evaluate, gate, package, plan
from workers.stages.context import Context

NAME = "sweep"
REPORT = "sweep_report.json"


def done(turns: Sequence[Context]) -> DoneReport:
    """Assemble the package and return the final report; `turns` holds the finished context of each ratio."""
    context = turns[0]
    directory = context.shared.begin(NAME) / package.NAME
    shutil.rmtree(directory, ignore_errors=True)
    results = tuple(result_of(turn) for turn in turns)
    for turn, result in zip(turns, results, strict=True):
        shutil.copytree(package.package_dir(turn), directory / result.directory, copy_function=os.link)
    report = SweepReport(job_id=context.assignment.job_id, recipe=context.assignment.recipe, results=results)
    write_report(report, context.assignment.model_path, directory)
    first, *_ = results
    return DoneReport(
        package=directory,
        achieved_ratio=first.achieved_ratio,
        metrics=first.metrics,
        sweep=results,
        missed=missed(turns),
    )


def result_of(context: Context) -> SweepResult:
    """Return the result for one ratio."""
    metrics = evaluate.metrics(context)
    return SweepResult(
        target_ratio=context.ratio,
        achieved_ratio=metrics.ratio,
        directory=directory_name(context.ratio),
        method=plan.plan_of(context).method,
        metrics=metrics,
    )


def directory_name(ratio: float) -> str:
    """Return the directory name of a ratio: its shortest exact decimal form, such as '1.5' or '2'."""
    return repr(ratio).removesuffix(".0")


def write_report(report: SweepReport, original: Path, directory: Path) -> None:
    """Write the report, its plot, the model card and the checksums into `directory`."""
    # Matplotlib takes memory that the model needs, and is needed once, at the end.
    from workers.report.original import CARD, front_matter_of
    from workers.report.sweep import draw_tradeoff, sweep_card

    (directory / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    plot = draw_tradeoff(report, directory)
    (directory / CARD).write_text(sweep_card(report, front_matter_of(original), plot), encoding="utf-8")
    write_sums(directory)


def missed(turns: Sequence[Context]) -> str | None:
    """Return a sentence about every bound of the recipe's gate that a ratio misses, or None if all are met."""
    asked = turns[0].assignment.recipe.evaluation.gate
    return gate.as_sentence(
        f"at ratio {turn.ratio:g} {miss}" for turn in turns for miss in gate.misses_of(asked, evaluate.metrics(turn))
    )
