"""Draw the pictures of a report: size and perplexity, error and size of each matrix, removed blocks, training loss.

    for plot in draw(report, package):        # writes PNG files below package / "plots"
        plot.name, plot.caption

Promise: pictures are readable at a width of 600 pixels. The same report gives the same bytes with the same matplotlib.
A picture without data is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from modelpress.contract.job import Metrics
from modelpress.contract.report import CompressionReport
from modelpress.spec.criteria import CRITERIA
from workers.report import charts

DIRECTORY = "plots"


@dataclass(frozen=True)
class Plot:
    """A written picture: its path relative to the package, and a caption of one sentence."""

    name: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A kind of picture. `draw` returns the figure, or None if the report has no data for it."""

    name: str
    caption: str
    draw: Callable[[CompressionReport], Figure | None]


def draw(report: CompressionReport, package: Path) -> tuple[Plot, ...]:
    """Write every picture that the report has data for to `package` / "plots", and return them.

    Raises FileExistsError if that directory exists.
    """
    plots = []
    (package / DIRECTORY).mkdir()
    with charts.styled():
        for picture in PICTURES:
            if (figure := picture.draw(report)) is not None:
                plot = Plot(f"{DIRECTORY}/{picture.name}.png", picture.caption)
                charts.save(figure, package / plot.name)
                plots.append(plot)
    return tuple(plots)


def before_and_after(report: CompressionReport) -> Figure:
    """Return a chart of the size and the perplexities of every measured model."""
    models = measured_models(report)
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
    """Return a dataset's name without its kind; for one from the hub, 'org/name' on one line and 'config/split' on the
    next."""
    kind, _, name = dataset.partition(":")
    parts = name.split("/")
    return "\n".join(("/".join(parts[:2]), "/".join(parts[2:]))) if kind == "hub" else name


def measured_models(report: CompressionReport) -> dict[str, Metrics]:
    """Return the metrics of every measured model by its label in pictures and tables."""
    found = report.metrics
    models = {"original": found.before, "compressed": found.after}
    if found.baseline is not None:
        models["blocks dropped"] = found.baseline
    return models | {f"compressed, {name}": metrics for name, metrics in found.formats.items()}


def error_per_site(report: CompressionReport) -> Figure | None:
    """Return a chart of the relative error of each matrix's outputs; None if none was measured."""
    cells = {
        (site.role, site.block): site.relative_error
        for site in report.sites
        if site.block is not None and site.relative_error is not None
    }
    return per_site(report, cells, "Error of each matrix", "relative error of the outputs")


def allocation(report: CompressionReport) -> Figure | None:
    """Return a chart of the share of parameters that each matrix keeps; None if all keep everything."""
    gone = {removed.block for removed in report.removed_blocks}
    cells = {
        (site.role, site.block): 100 * site.kept
        for site in report.sites
        if site.block is not None and site.block not in gone
    }
    if all(kept == 100 for kept in cells.values()):
        return None
    scale = (min(50, *cells.values()), 100)
    return per_site(report, cells, "Size of each matrix", "parameters kept, %", scale)


def per_site(
    report: CompressionReport, cells: charts.Cells, title: str, label: str, scale: tuple[float, float] | None = None
) -> Figure | None:
    """Return a chart of values by matrix: a heat map by role and block, or columns by block if there is one role.

    None if there are no values.
    """
    if not cells:
        return None
    # Sorted, so that roles have the same order in every picture.
    cells = dict(sorted(cells.items()))
    roles, _ = charts.axes_of(cells)
    if len(roles) == 1:
        values = {block: value for (_, block), value in cells.items()}
        return charts.column_chart(values, title=f"{title} ({roles[0]})", label=label)
    note = "pale: removed" if report.removed_blocks else ""
    return charts.heatmap(cells, title=title, label=label, scale=scale, note=note)


def bits(report: CompressionReport) -> Figure | None:
    """Return a chart of the stored bits per weight of each matrix in the last format; None if none is rounded."""
    if not report.rounding:
        return None
    rounding = report.rounding[-1]
    found = {matrix.name: matrix.bits for matrix in rounding.matrices}
    cells = {
        (site.role, site.block): found[site.name]
        for site in report.sites
        if site.block is not None and site.name in found
    }
    return per_site(report, cells, f"Bits of each matrix, {rounding.format}", "stored bits per weight")


def block_influence(report: CompressionReport) -> Figure | None:
    """Return a chart of each block's score in the last round that scored it; None if no block was removed.

    For a removed block, this is the round in which it was removed.
    """
    if not report.removed_blocks:
        return None
    scores: dict[int, float] = {}
    for removed in report.removed_blocks:
        scores |= removed.scores
    order = {removed.block: str(number) for number, removed in enumerate(report.removed_blocks, start=1)}
    return charts.column_chart(
        dict(sorted(scores.items())),
        title="Cost of removing each block",
        label=CRITERIA[report.removed_blocks[0].criterion].axis,
        marked=order,
        note="orange: removed, in the order of the numbers",
    )


def loss_curve(report: CompressionReport) -> Figure | None:
    """Return a chart of the distillation loss over tokens, the rounded model's if that alone was trained; else None."""
    trained = (report.distillation, *(rounding.distillation for rounding in report.rounding))
    points = next((each.points for each in trained if each is not None), ())
    if not points:
        return None
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
    Picture("allocation", "Share of its parameters that each matrix keeps, by block.", allocation),
    Picture("bits", "Stored bits per weight of each matrix, by block.", bits),
    Picture(
        "block_influence",
        "Cost of removing each block that was scored; removed blocks are orange.",
        block_influence,
    ),
    Picture("loss_curve", "Loss of the distillation; the line is its moving mean.", loss_curve),
)
