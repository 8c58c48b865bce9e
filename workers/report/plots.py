"""The pictures of a report: what it all came to, what each matrix lost and kept, which blocks went, how training ran.

    for plot in draw(report, package):        # writes PNG files below package / "plots"
        plot.name, plot.caption

Promise: readable at 600 pixels of width; the same report gives the same bytes with the same matplotlib. A picture that
would have nothing to show is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from app.contract.job import Metrics
from app.contract.report import CompressionReport
from workers.compression.spec.steps import Criterion
from workers.report import charts

DIRECTORY = "plots"


@dataclass(frozen=True)
class Plot:
    """A picture below the package: its name there, and what it shows in a sentence."""

    name: str
    caption: str


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str
    drawn: Callable[[CompressionReport], Figure | None]


def draw(report: CompressionReport, package: Path) -> tuple[Plot, ...]:
    """Writes every picture that the report has something to show in."""
    plots = []
    (package / DIRECTORY).mkdir()
    with charts.styled():
        for picture in PICTURES:
            if (figure := picture.drawn(report)) is not None:
                plot = Plot(f"{DIRECTORY}/{picture.name}.png", picture.caption)
                charts.save(figure, package / plot.name)
                plots.append(plot)
    return tuple(plots)


def before_and_after(report: CompressionReport) -> Figure:
    """Size, and perplexity on each text, of every model that was measured."""
    models = measured(report)
    colour_of = dict(zip(models, cycle((charts.GREY, charts.BLUE, charts.ORANGE, charts.GREEN)), strict=False))
    texts = list(report.metrics.before.perplexity)
    sizes = {"": {name: model.bytes / 1e6 for name, model in models.items()}}
    perplexities = {
        in_two_lines(text): {name: model.perplexity[text] for name, model in models.items()} for text in texts
    }
    figure, (size, quality) = charts.new_figure(1.7 + 0.3 * len(models) * len(texts), columns=2)
    charts.bars(size, sizes, colour_of, "{:,.4g}")
    size.set(title="Size", xlabel="weights, megabytes")
    charts.bars(quality, perplexities, colour_of, "{:,.2f}")
    quality.set(title="Perplexity", xlabel="lower is better")
    figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=len(models), frameon=False)
    return figure


def in_two_lines(dataset: str) -> str:
    """The name of a dataset without its kind; of one from the hub 'org/name' above 'config/split'."""
    kind, _, name = dataset.partition(":")
    parts = name.split("/")
    return "\n".join(("/".join(parts[:2]), "/".join(parts[2:]))) if kind == "hub" else name


def measured(report: CompressionReport) -> dict[str, Metrics]:
    """Every model that was measured, by what it is called in pictures and tables."""
    found = report.metrics
    models = {"original": found.before, "compressed": found.after}
    if found.baseline is not None:
        models["blocks dropped"] = found.baseline
    return models | {f"compressed, {name}": metrics for name, metrics in found.formats.items()}


def error_per_site(report: CompressionReport) -> Figure | None:
    cells = {
        (site.role, site.block): site.relative_error
        for site in report.sites
        if site.block is not None and site.relative_error is not None
    }
    label = "relative error of the outputs"
    return per_site(report, cells, "How far each matrix is from the original", label)


def allocation(report: CompressionReport) -> Figure | None:
    gone = {removed.block for removed in report.removed_blocks}
    cells = {
        (site.role, site.block): 100 * site.kept
        for site in report.sites
        if site.block is not None and site.block not in gone
    }
    if all(kept == 100 for kept in cells.values()):
        return None
    scale = (min(50, *cells.values()), 100)
    return per_site(report, cells, "Which matrix keeps how much", "parameters kept, %", scale)


def per_site(
    report: CompressionReport, cells: charts.Cells, title: str, label: str, scale: tuple[float, float] | None = None
) -> Figure | None:
    """By role and block, or by block alone where there is one role."""
    if not cells:
        return None
    # Roles in the same order in every picture, whichever of them the first block has.
    cells = dict(sorted(cells.items()))
    roles, _ = charts.axes_of(cells)
    if len(roles) == 1:
        values = {block: value for (_, block), value in cells.items()}
        return charts.column_chart(values, title=f"{title} ({roles[0]})", label=label)
    note = "pale: removed" if report.removed_blocks else ""
    return charts.heatmap(cells, title=title, label=label, scale=scale, note=note)


SCORES: Mapping[Criterion, str] = {
    "macro_influence": "turning of the final hidden state",
    "block_influence": "turning of what enters the block",
    "loss_after_removal": "rise of the loss (nats per token)",
    "trial_fusion": "turning of the final state after a refit",
}


def block_influence(report: CompressionReport) -> Figure | None:
    """Each block's score in the last round in which it was asked, which is that in which it went, if it did."""
    if not report.removed_blocks:
        return None
    scores: dict[int, float] = {}
    for removed in report.removed_blocks:
        scores |= removed.scores
    order = {removed.block: str(number) for number, removed in enumerate(report.removed_blocks, start=1)}
    return charts.column_chart(
        dict(sorted(scores.items())),
        title="Which blocks the model can spare",
        label=SCORES[report.removed_blocks[0].criterion],
        marked=order,
        note="orange: removed, in the order of the numbers",
    )


def loss_curve(report: CompressionReport) -> Figure | None:
    if report.distillation is None or not report.distillation.points:
        return None
    points = report.distillation.points
    return charts.curve(
        [point.tokens for point in points],
        [point.loss for point in points],
        title="Distillation from the original",
        across="tokens trained on",
        label="loss",
    )


PICTURES = (
    Picture("before_and_after", "Size and perplexity, before and after.", before_and_after),
    Picture(
        "error_per_site", "Relative error of each matrix's outputs, by block, before any training.", error_per_site
    ),
    Picture("allocation", "The part of its parameters that each matrix keeps, by block.", allocation),
    Picture(
        "block_influence",
        "What the model loses without each block that was asked; removed ones are orange.",
        block_influence,
    ),
    Picture("loss_curve", "Loss of the distillation; the line is its moving mean.", loss_curve),
)
