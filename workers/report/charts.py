"""Charts of plain numbers and names in one common style.

Fonts are those of matplotlib. Colours can be told apart by colour-blind readers. Nothing depends on a display or on
pyplot's global state.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

WIDTH_INCHES, DOTS_PER_INCH = 7.5, 160
BLUE, ORANGE, GREEN, GREY, PALE, INK = "#2f6ca3", "#e08214", "#4f9d87", "#9aa5b1", "#e9edf1", "#22303c"
SEQUENTIAL = "YlGnBu"

STYLE: Any = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}

Cells = Mapping[tuple[str, int], float]
"""Values by row name and column number."""


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, without matplotlib's version in the metadata, so that the same figure gives the same
    bytes."""
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


def save_drawing(figure: Figure, path: Path) -> None:
    """Write the figure as SVG, without date and matplotlib's version, so that the same figure gives the same bytes."""
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def styled() -> Any:
    """Return a context in which figures are made and saved in the common style."""
    return rc_context(STYLE)


def new_figure(height_inches: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with `columns` axes side by side."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def heatmap(
    cells: Cells, *, title: str, label: str, scale: tuple[float, float] | None = None, note: str = ""
) -> Figure:
    """Return a heat map of `cells`; missing cells are pale. Colours span `scale`, or the values if it is None.

    `label` names the values, `note` is printed below the columns.
    """
    rows, columns = axes_of(cells)
    figure, (axes,) = new_figure(1.7 + 0.34 * len(rows))
    table = [[cells.get((row, column), float("nan")) for column in columns] for row in rows]
    axes.set_facecolor(PALE)
    edges = (columns[0] - 0.5, columns[-1] + 0.5, len(rows) - 0.5, -0.5)
    lowest, highest = scale or (min(cells.values()), max(cells.values()))
    picture = axes.imshow(table, cmap=SEQUENTIAL, vmin=lowest, vmax=highest, aspect="auto", extent=edges)
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    number_blocks(axes, note)
    axes.set_title(title)
    legend = figure.colorbar(picture, ax=axes, pad=0.015, aspect=14)
    legend.set_label(label)
    legend.outline.set_visible(False)
    return figure


def column_chart(
    values: Mapping[int, float], *, title: str, label: str, marked: Mapping[int, str] | None = None, note: str = ""
) -> Figure:
    """Return a chart with a column for each value; columns in `marked` have another colour and a text above.

    `label` names the values, `note` is printed below the columns.
    """
    marked = marked or {}
    figure, (axes,) = new_figure(3.4)
    colours = [ORANGE if number in marked else BLUE for number in values]
    drawn = axes.bar(list(values), list(values.values()), color=colours, width=0.8)
    axes.bar_label(drawn, labels=[marked.get(number, "") for number in values], padding=2, color=ORANGE, fontsize=10)
    axes.set_ylabel(label)
    axes.margins(x=0.01)
    number_blocks(axes, note)
    axes.set_title(title)
    return figure


def bars(axes: Axes, groups: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], style: str) -> None:
    """Draw horizontal bars: a group for each name, with a bar for each label of `colours` and its value at the end.

    `groups` maps names to {label: value}; `style` formats the values.
    """
    thickness = 0.8 / len(colours)
    for number, (label, colour) in enumerate(colours.items()):
        present = [(place, group[label]) for place, group in enumerate(groups.values()) if label in group]
        places = [place + (number + 0.5) * thickness - 0.4 for place, _ in present]
        values = [value for _, value in present]
        drawn = axes.barh(places, values, height=0.88 * thickness, color=colour, label=label)
        axes.bar_label(drawn, labels=[style.format(value) for value in values], padding=4)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.28 * max(value for group in groups.values() for value in group.values()))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.invert_yaxis()


def lines(axes: Axes, series: Mapping[str, Mapping[float, float]], style: str) -> None:
    """Draw a line for each name through its {x: y}, with the y axis from zero.

    A single line has its values at every point. Several lines have them at the end only. `style` formats the values.
    """
    for (name, values), colour in zip(series.items(), cycle((BLUE, ORANGE, GREEN, GREY)), strict=False):
        axes.plot(list(values), list(values.values()), color=colour, marker="o", linewidth=2, label=name)
        for point in [*values.items()][0 if len(series) == 1 else -1 :]:
            axes.annotate(style.format(point[1]), point, xytext=(0, 7), textcoords="offset points", ha="center")
    axes.margins(x=0.12, y=0.35)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def curve(places: Sequence[float], values: Sequence[float], *, title: str, across: str, label: str) -> Figure:
    """Return a chart of noisy values, pale, with their moving mean on top; `across` labels the x axis."""
    figure, (axes,) = new_figure(3.4)
    smooth = moving_mean(values, len(values) // 40)
    if len(values) >= 20:
        axes.plot(places, values, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(places, smooth, color=BLUE, linewidth=2)
    axes.annotate(
        f"{smooth[-1]:.3g}",
        (places[-1], smooth[-1]),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=BLUE,
    )
    axes.set(xlabel=across, ylabel=label, ylim=(0, 1.1 * max(smooth)))
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(title)
    return figure


def moving_mean(values: Sequence[float], span: int) -> list[float]:
    """Return, for each value, the mean of it and of up to `span` neighbours on either side."""
    return [fmean(values[max(0, place - span) : place + span + 1]) for place in range(len(values))]


def axes_of(cells: Cells) -> tuple[list[str], list[int]]:
    """Return the row names in order of appearance, and all numbers from the first column to the last."""
    columns = [column for _, column in cells]
    return list(dict.fromkeys(row for row, _ in cells)), list(range(min(columns), max(columns) + 1))


def number_blocks(axes: Axes, note: str) -> None:
    """Label the x axis with block numbers, and print `note` below."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlabel("block" + (f"\n{note}" if note else ""))
