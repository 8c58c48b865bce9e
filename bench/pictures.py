"""Pictures of results, as SVG.

Perplexity is drawn as bars by case, or as curves against tokens of training; divergence against the size of files.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from bench.experiment import Experiment
from bench.formatting import digits
from bench.kinds.bits import Bits, Mix, Rounded
from bench.kinds.quality import ORIGINAL, Judgement, Quality
from bench.result import Result

COLOURS = ("#3b6ea5", "#d98c3f", "#5b9a68", "#a05195")


def draw(experiment: Experiment[Any, Any], result: Result[Any]) -> bytes:
    """Return the picture of an experiment. Raises TypeError for a kind that has none."""
    order = [case.name for case in experiment.cases]
    rows = [row for run in result.runs for row in run.rows if row.case != ORIGINAL]
    rows.sort(key=lambda row: order.index(row.case))
    matplotlib.rcParams.update({"svg.hashsalt": "modelpress", "font.size": 11})
    if isinstance(experiment, Bits):
        figure = sizes(experiment, rows)
    elif isinstance(experiment, Quality):
        figure = curves(experiment, rows) if any(len(row.points) > 1 for row in rows) else bars(experiment, rows)
    else:
        raise TypeError(f"experiments of the kind {experiment.kind!r} have no picture")
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return file.getvalue()


def sizes(experiment: Bits, rows: Sequence[Rounded]) -> Figure:
    """Return a point for each file that llama.cpp opens: divergence against size, ours joined by a line."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    theirs = {case.name: case.mix for case in experiment.cases if isinstance(case, Mix)}
    judged = [(row, row.in_engine.divergence) for row in rows if row.in_engine is not None]
    for row, divergence in judged:
        if row.case in theirs:
            axes.plot(row.bytes / 1e6, divergence, "o", color=COLOURS[1])
            point = (row.bytes / 1e6, divergence)
            axes.annotate(theirs[row.case], point, xytext=(6, 4), textcoords="offset points", fontsize=9)
    for number, trained in enumerate((False, True)):
        ours = sorted(
            (row.bytes / 1e6, divergence)
            for row, divergence in judged
            if row.case not in theirs and (row.untuned is not None) is trained
        )
        label = "Modelpress, trained" if trained else "Modelpress"
        if ours:
            axes.plot(*zip(*ours, strict=True), "s-" if len(ours) > 1 else "s", color=COLOURS[2 * number], label=label)
    axes.plot([], [], "o", color=COLOURS[1], label="llama.cpp with an importance matrix")
    axes.set(
        yscale="log", xlabel="size of the GGUF file, MB", ylabel="KL from the original, nats per token (log scale)"
    )
    axes.set_title("Divergence against size, in llama.cpp", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def bars(experiment: Quality, rows: Sequence[Judgement]) -> Figure:
    """Return a bar for each case and text, on a logarithmic scale that begins at 1, no loss."""
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.65 * len(rows)), layout="constrained")
    texts, ends = experiment.judged.texts, []
    height = 0.8 / len(texts)
    for place, name in enumerate(texts):
        values = [row.points[-1].ratios[name] for row in rows]
        offsets = [number + (place - (len(texts) - 1) / 2) * height for number in range(len(rows))]
        drawn = axes.barh(offsets, values, height=0.9 * height, color=COLOURS[place], label=name)
        axes.bar_label(drawn, labels=[f"{digits(value)} ×" for value in values], padding=4)
        ends += values
    axes.set_yticks(range(len(rows)), [row.case for row in rows])
    axes.invert_yaxis()
    axes.set(
        xscale="log", xlim=(1, 6 * max(ends)), xlabel="perplexity, relative to the original (log scale; 1: no loss)"
    )
    axes.set_title(experiment.title, loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    return figure


def curves(experiment: Quality, rows: Sequence[Judgement]) -> Figure:
    """Return a panel for each text with a curve for each case."""
    texts = experiment.judged.texts
    figure, panels = pyplot.subplots(
        1, len(texts), figsize=(3 * len(texts), 4.2), layout="constrained", sharey=True, squeeze=False
    )
    for axes, name in zip(panels[0], texts, strict=True):
        for row in rows:
            tokens = [point.tokens / 1024 for point in row.points]
            axes.plot(tokens, [point.ratios[name] for point in row.points], marker=".", label=row.case)
        axes.set(title=name, xlabel="tokens (1024)", yscale="log")
        axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:.1f}"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.StrMethodFormatter("{x:.1f}"))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("perplexity, relative to the original (log scale)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
