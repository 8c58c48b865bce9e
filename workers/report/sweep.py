"""Draw and write the trade-off of a job with several ratios, as a picture and a card with a table.

    plot = draw_tradeoff(report, package)        # writes tradeoff.svg
    text = sweep_card(report, original, plot)

`original` is the front matter of the original's card. Promise: the same report gives the same bytes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from matplotlib.axes import Axes

from modelpress.contract.job import Metrics
from modelpress.contract.report import SweepReport
from workers.report import charts
from workers.report.card import RELATION
from workers.report.phrases import code, plain
from workers.report.plots import Plot, in_two_lines

TRADEOFF = "tradeoff.svg"
INHERITED = ("license", "license_name", "license_link", "language")


def draw_tradeoff(report: SweepReport, package: Path) -> Plot:
    """Write a picture of perplexities and sizes over the target ratio, with the original at 1, and return it."""
    models = by_target(report)
    perplexities = {
        in_two_lines(text): {ratio: model.perplexity[text] for ratio, model in models.items()}
        for text in original_of(report).perplexity
    }
    size = {"": {ratio: model.bytes / 1e6 for ratio, model in models.items()}}
    with charts.styled():
        figure, (quality, weights) = charts.new_figure(3.8, columns=2)
        charts.lines(quality, perplexities, "{:,.4g}")
        label(quality, "Perplexity", "lower is better")
        charts.lines(weights, size, "{:,.4g}")
        label(weights, "Size", "weights, megabytes")
        figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        charts.save_drawing(figure, package / TRADEOFF)
    return Plot(TRADEOFF, "Perplexity and size over the target ratio; the original is at 1.")


def label(axes: Axes, title: str, values: str) -> None:
    """Set title and labels; the x axis is the target ratio."""
    axes.set(title=title, xlabel="target: times fewer stored parameters", ylabel=values)


def original_of(report: SweepReport) -> Metrics:
    """Return the metrics of the original."""
    return report.results[0].metrics.before


def by_target(report: SweepReport) -> dict[float, Metrics]:
    """Return the metrics of every model by its target ratio, ascending, with the original at 1.

    The key is the target, because two models may achieve the same ratio.
    """
    found = {1.0: original_of(report)} | {result.target_ratio: result.metrics.after for result in report.results}
    return dict(sorted(found.items()))


def sweep_card(report: SweepReport, original: Mapping[str, Any], plot: Plot) -> str:
    """Return the card of the whole package as Markdown."""
    name = report.recipe.model.removeprefix("local:").partition("@")[0].rpartition("/")[2]
    ratios = ", ".join(f"{ratio:g}" for ratio in report.recipe.ratios)
    return f"""---
{front_matter(report, original).to_yaml()}
---

# {plain(name)}, {ratios} times smaller

{code(report.recipe.model)}, compressed by Modelpress to several sizes from one calibration. Each directory is a
checkpoint of its own, with a card that says how to open it, and a report.

## The trade-off

{chr(10).join(table(report))}

Each is measured as its card says, on text that is not used for calibration or training.

![{plot.caption}]({plot.name})

`sweep_report.json` has these figures and all others. `sha256sum --check SHA256SUMS` checks the files here and below.
"""


def front_matter(report: SweepReport, original: Mapping[str, Any]) -> ModelCardData:
    """Return the card's metadata for the hub; licence and language are the original's."""
    reference = report.recipe.model
    base = None if reference.startswith("local:") else reference.partition("@")[0]
    return ModelCardData(
        base_model=base,
        base_model_relation=RELATION if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["compressed", "modelpress"],
        **{name: original[name] for name in INHERITED if name in original},
    )


def table(report: SweepReport) -> Iterator[str]:
    """Yield the lines of the table: a header, and a row for the original and for each checkpoint."""
    before = original_of(report)
    columns = [
        "target ratio",
        "achieved ratio",
        "method",
        "parameters",
        "weights, MB",
        *map(perplexity_on, before.perplexity),
    ]
    yield f"| directory | {' | '.join(columns)} |"
    yield "|---|" + "---:|" * len(columns)
    yield row("(original)", ["1", "1", "", *figures(before)])
    for result in report.results:
        target, achieved = f"{result.target_ratio:g}", f"{result.achieved_ratio:.4g}"
        link = f"[`{result.directory}`]({result.directory})"
        yield row(link, [target, achieved, code(result.method), *figures(result.metrics.after)])


def perplexity_on(text: str) -> str:
    """Return the header of a text's column."""
    return f"perplexity, {code(text)}"


def figures(model: Metrics) -> list[str]:
    """Return the cells with a model's parameters, megabytes and perplexities."""
    perplexities = (f"{perplexity:,.2f}" for perplexity in model.perplexity.values())
    return [f"{model.parameters:,}", f"{model.bytes / 1e6:,.1f}", *perplexities]


def row(name: str, cells: list[str]) -> str:
    """Return a row of the table."""
    return f"| {name} | {' | '.join(cells)} |"
