"""Draws docs/quality.svg from the first table of bench/RESULTS.md. Needs matplotlib: `python -m bench.picture`."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot

RESULTS = Path("bench/RESULTS.md")
PICTURE = Path("docs/quality.svg")
COLOURS = {"in": "#3b6ea5", "out": "#d98c3f"}
LABELS = {"in": "text of the calibration's domain", "out": "other text"}


def main() -> None:
    rows = first_table(RESULTS.read_text(encoding="utf-8"))[::-1]
    matplotlib.rcParams.update({"svg.hashsalt": "modelpress", "font.size": 11})
    figure, axes = pyplot.subplots(figsize=(8, 2.9), layout="constrained")
    for offset, column in ((0.2, "in"), (-0.2, "out")):
        places = [number + offset for number in range(len(rows))]
        values = [float(row[column].strip("*").replace(",", "")) for row in rows]
        bars = axes.barh(places, values, height=0.36, color=COLOURS[column], label=LABELS[column])
        axes.bar_label(
            bars, labels=[f"{value:,.3g} ×" if value < 1000 else f"{value:,.0f} ×" for value in values], padding=4
        )
    axes.set_yticks(range(len(rows)), [f"{row['method']}, {row['ratio']} ×" for row in rows])
    axes.set(xscale="log", xlim=(1, 2e6), xlabel="perplexity, relative to the original (log scale; 1 is no loss)")
    axes.set_title("SmolLM2-135M-Instruct made 1.3 times smaller, no training", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def first_table(markdown: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table, by the names in its head."""
    lines = markdown[markdown.index("\n| ") :].strip().partition("\n\n")[0].split("\n")
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


if __name__ == "__main__":
    main()
