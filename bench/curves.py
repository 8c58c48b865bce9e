"""Draws docs/fusion.svg from the rows of `bench.fusion`, and prints them as one Markdown table.

    python -m bench.curves rows.jsonl

Needs matplotlib. A method without a row at several numbers of tokens is a point at the left edge.
"""

import argparse
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from bench.fusion import HEAD, LOGITS, Results, Row

PICTURE = Path("docs/fusion.svg")
SIDES = {"inside": "text of the calibration's domain", "outside": "other text"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    results = Results(options.results)
    rows = sorted(results.rows.values(), key=lambda row: (row.name, row.tokens))
    print(HEAD, *(results.markdown(row) for row in rows), sep="\n")
    draw(curves(rows), results.rows["dense", 0], options.picture)


def curves(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each curve by its name, ascending in tokens; one of logit distillation begins without any."""
    found: dict[str, list[Row]] = {}
    starts = {row.name: row for row in rows if row.tokens == 0}
    for row in rows:
        if row.name == "dense":
            continue
        if row.name not in found:
            start = starts.get("drop" if row.name == "fusegpt" else row.name.removesuffix(LOGITS))
            found[row.name] = [start] if start is not None and start.name != row.name else []
        found[row.name].append(row)
    return {name: points for name, points in found.items() if name + LOGITS not in found}


def draw(lines: dict[str, list[Row]], dense: Row, picture: Path) -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "modelpress", "font.size": 11})
    figure, panels = pyplot.subplots(1, len(SIDES), figsize=(10, 4.8), layout="constrained")
    for axes, (side, title) in zip(panels, SIDES.items(), strict=True):
        for name, points in lines.items():
            tokens, values = [row.tokens / 1024 for row in points], [getattr(row, side) for row in points]
            axes.plot(tokens, values, marker="o", label=name.replace(LOGITS, ", then logit distillation"))
        axes.axhline(getattr(dense, side), color="grey", linestyle=":", label="dense")
        axes.set(yscale="log", xlabel="tokens of distillation, in thousands (1024)", title=title)
        axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:.0f}"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.StrMethodFormatter("{x:.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("perplexity (log scale)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
