"""Render the parts of the documentation that follow from the code: `make docs`.

A page asks for a part by a pair of markers, and what stands between them is replaced:

    <!-- methods:begin -->
    <!-- methods:end -->

Promise: the same code gives the same bytes, so that a test can hold the committed pages to it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.settings import Settings
from bench.kinds import read_experiment
from bench.result import read_result, result_path
from modelpress.contract.codes import FAILURES
from modelpress.spec.architectures import ARCHITECTURES, INFERRED, Architecture
from modelpress.spec.formats import FORMATS
from modelpress.spec.methods import METHODS, Leaves
from workers.messages import FETCH_STAGE, START_STAGE
from workers.stages.registry import STAGES

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

PART = re.compile(r"<!-- (?P<name>[a-z-]+):begin -->(?P<text>.*?)<!-- (?P=name):end -->", re.DOTALL)

OPENED_BY: Mapping[Leaves, str] = MappingProxyType(
    {
        Leaves.PLAIN: "any engine",
        Leaves.FACTORED: "transformers, `trust_remote_code=True`",
        Leaves.EITHER: "depends on what is chosen",
    }
)


def main() -> None:
    """Rewrite every page that has markers."""
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(text: str) -> str:
    """Return a page with every marked part written anew. Raises KeyError for a part that PARTS does not have."""
    return PART.sub(
        lambda found: f"<!-- {found['name']}:begin -->{PARTS[found['name']]()}<!-- {found['name']}:end -->", text
    )


def methods() -> str:
    """Return a table of the methods."""
    return table(
        ("method", "what it does", "opened by", "paper"),
        (
            (f"`{method.name}`", method.title, OPENED_BY[method.leaves], method.paper or "")
            for method in METHODS.values()
        ),
    )


def method_details() -> str:
    """Return a section for each method: its description and options."""
    return "\n".join(["", *(_method_section(name) for name in METHODS)])


def _method_section(name: str) -> str:
    method = METHODS[name]
    paper = f" ({method.paper})" if method.paper else ""
    lines = [f"### `{name}`: {method.title}", "", f"{method.description}{paper}", ""]
    options = [row for row in fields(method.options) if row[0] != "`name`"]
    return "\n".join(lines) if not options else "\n".join(lines) + table(("option", "default", "what it is"), options)


def architectures() -> str:
    """Return the supported model types in one line."""
    return ", ".join(f"`{model_type}`" for model_type in ARCHITECTURES)


def architecture_table() -> str:
    """Return a table of the architectures: what can be asked of each."""
    return table(
        ("`model_type`", "kind", "not with the methods", "rounded in safetensors", "fewer heads", "GGUF"),
        (_architecture(architecture) for architecture in ARCHITECTURES.values()),
    )


def inferred_table() -> str:
    """Return the same table of the architectures that are inferred."""
    return table(
        ("`model_type`", "not with the methods", "rounded in safetensors", "fewer heads"),
        (_inferred(architecture) for architecture in INFERRED.understood.values()),
    )


def _inferred(architecture: Architecture) -> tuple[str, ...]:
    name, _, left_out, packed, heads, _ = _architecture(architecture)
    return name, left_out, packed, heads


def refused_table() -> str:
    """Return a table of the causal language models of transformers that are refused, by their reasons."""
    reasons: dict[str, list[str]] = {}
    for name, reason in INFERRED.refused.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    rows = ((why.replace("|", "\\|"), ", ".join(names)) for why, names in reasons.items())
    return table(("why", "`model_type`"), rows)


def _architecture(architecture: Architecture) -> tuple[str, ...]:
    left_out = (f"`{name}`" for name, method in METHODS.items() if not method.takes(architecture))
    packed = architecture.packable and architecture.layout == "linear"
    return (
        f"`{architecture.model_type}`",
        "dense" if architecture.experts is None else "mixture of experts",
        ", ".join(left_out),
        "yes" if packed else "",
        "" if architecture.attention.heads is None else "yes",
        "" if architecture.gguf is None else "read",
    )


def gguf_architectures() -> str:
    """Return the model types that are also read from GGUF files, in one line."""
    return ", ".join(f"`{name}`" for name, architecture in ARCHITECTURES.items() if architecture.gguf is not None)


def formats() -> str:
    """Return a table of the output formats."""
    return table(
        ("format", "what it holds", "opened by"),
        ((f"`{form.name}`", form.description, "; ".join(form.opened_by)) for form in FORMATS.values()),
    )


def settings() -> str:
    """Return a table of the service's settings."""
    prefix = str(Settings.model_config.get("env_prefix", ""))
    rows = ((f"`{prefix}{name.strip('`').upper()}`", default, text) for name, default, text in fields(Settings))
    return table(("variable", "default", "what it is"), rows)


def stages() -> str:
    """Return the names of the stages in one line."""
    return ", ".join((FETCH_STAGE, START_STAGE, *(stage.name for stage in STAGES)))


def failures() -> str:
    """Return a table of the codes that a job can fail with."""
    return table(
        ("code", "what happened", "what to do", "retried"),
        (
            (f"`{code}`", f"{kind.title}. {kind.explanation}", kind.way_out, "yes" if kind.retryable else "no")
            for code, kind in FAILURES.items()
        ),
    )


def fields(model: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Return name, default and description of each field of a pydantic model, for a table."""
    return [(f"`{name}`", default_of(field), field.description or "") for name, field in model.model_fields.items()]


def default_of(field: FieldInfo) -> str:
    """Return a field's default as a table shows it: 'none' where nothing is set."""
    value: Any = field.get_default(call_default_factory=False)
    if field.is_required():
        return "required"
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


COSTS: tuple[tuple[str, str, str | None], ...] = (
    ("quality", "low_rank at 1.15", None),
    ("quality", "low_rank at 1.3", "low_rank at 1.31, bfloat16"),
    ("quality", "low_rank at 1.5", None),
    ("fusion", "fusion", "fusion at 1.27, bfloat16"),
    ("fusion", "auto", "width_low_rank at 1.27, bfloat16"),
)
"""Rows of README's table: an experiment, its case, and the case of the experiment 'speed' that belongs to it."""

DISTILLED = "auto with distillation, State of the Union 1 : teacher 2"
"""The last row of README's table: a case of the experiment 'jobs', its first and third text."""


def costs() -> str:
    """Return README's table of what compression costs, from bench/results."""
    paces = rows_of("speed")
    header = ("method", "times smaller", "perplexity, text as in calibration", "other text", "reading", "writing")
    return table(
        header,
        [*(_cost(rows_of(name)[case], paces.get(pace or "")) for name, case, pace in COSTS), _distilled()],
    )


def _cost(row: Any, pace: Any) -> tuple[str, ...]:
    same, other = (f"× {ratio:.2f}" for ratio in row.points[-1].ratios.values())
    name = f"`{row.case.partition(' at ')[0]}`" + (f", which took `{row.chosen}`" if row.chosen else "")
    if pace is None:
        return (name, f"{row.ratio:.2f}", same, other, "", "")
    reading, writing = pace.prefill / pace.original_prefill, pace.decode / pace.original_decode
    return (name, f"{row.ratio:.2f}", same, other, f"× {reading:.2f}", f"× {writing:.2f}")


def _distilled() -> tuple[str, ...]:
    row = rows_of("jobs")[DISTILLED]
    (outcome,) = row.outcomes
    same, _, other, *_ = (f"× {text.times:.2f}" for text in outcome.texts.values())
    return (f"`auto`, then distilled ({row.seconds / 60:.0f} min in all)", f"{outcome.ratio:.2f}", same, other, "", "")


def bits() -> str:
    """Return README's table of files of fewer bits, largest first, from bench/results."""
    rows = [row for row in rows_of("bits").values() if row.in_engine is not None]
    header = ("GGUF file", "times smaller", "MB", "KL, nats per token", "same first token", "perplexity")
    return table(
        header,
        (
            (
                row.case,
                f"{row.ratio:.2f}",
                f"{row.bytes / 1e6:.1f}",
                f"{row.in_engine.divergence:.3f}",
                f"{row.in_engine.agreement:.1%}",
                f"× {row.in_engine.perplexity:.3f}",
            )
            for row in sorted(rows, key=lambda row: -row.bytes)
        ),
    )


def kronecker() -> str:
    """Return README's table of Kronecker sums beside low rank, before and after training, as far as it is measured."""
    rows = [row for name, row in rows_of("kronecker").items() if name != "original"]
    if not rows:
        return "\nNot measured yet: `python -m bench bench/experiments/kronecker.toml --data DIRECTORY` does.\n"
    header = ("at 1.31 times", "text as in calibration", "other text", "trained, same text", "trained, other text")
    return table(header, ((f"`{row.case}`", *_perplexities(row)) for row in rows))


def _perplexities(row: Any) -> Iterator[str]:
    for point in (row.points[0], row.points[-1]):
        yield from (f"× {ratio:.2f}" if ratio < 100 else f"× {ratio:,.0f}" for ratio in point.ratios.values())


def rows_of(name: str) -> dict[str, Any]:
    """Return the rows of an experiment by the names of their cases."""
    path = ROOT / "bench" / "experiments" / f"{name}.toml"
    result = read_result(result_path(path), read_experiment(path))
    return {row.case: row for run in result.runs for row in run.rows}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table between two line breaks. A `|` inside a cell is escaped."""
    titles = list(header)
    cells = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows)
    lines = (f"| {line} |" for line in (" | ".join(titles), *cells))
    first, *others = lines
    return "\n".join(["", first, f"|{'---|' * len(titles)}", *others, ""])


PARTS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "methods": methods,
        "method-details": method_details,
        "architectures": architectures,
        "architecture-table": architecture_table,
        "inferred-table": inferred_table,
        "refused-table": refused_table,
        "gguf-architectures": gguf_architectures,
        "formats": formats,
        "settings": settings,
        "stages": stages,
        "failures": failures,
        "costs": costs,
        "kronecker": kronecker,
        "bits": bits,
    }
)
"""What a marker may ask for: a new part is a function and a line here."""


if __name__ == "__main__":
    main()
