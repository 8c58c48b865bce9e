"""Measurements of several models side by side."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from app.page import units
from modelpress.contract.job import Job, Metrics

SMALLER, LARGER = min, max
"""Which of several figures is the best one."""

Best = Callable[[Iterable[float]], float]
Figure = Callable[[Metrics], float | None]


@dataclass(frozen=True)
class Model:
    """A measured model: a column of the table."""

    name: str
    metrics: Metrics
    original: Metrics | None = None
    """The model that it was made from; None for an original itself."""


@dataclass(frozen=True)
class Cell:
    """A figure as text, and beside it what multiple of the original's it is; None for an original itself."""

    text: str
    beside: str | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Line:
    """One figure of every model."""

    name: str
    about: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of figure: how it is shown, whether as a multiple of the original's, and which is the best."""

    name: str
    show: Callable[[float | None], str]
    about: str = ""
    times: Callable[[float], str] | None = None
    best: Best | None = None


def plain(digits: int) -> Callable[[float | None], str]:
    """Return a function that shows a number with so many decimals."""
    return lambda number: units.NOTHING if number is None else f"{number:,.{digits}f}"


def multiple(number: float) -> str:
    """Return how many times the original's figure it is."""
    return f"× {number:.3f}" if number < 10 else f"× {number:.3g}"


SIZE = Kind("Size of the weights", units.size, times=lambda number: f"{1 / number:.2f}× smaller", best=SMALLER)
PARAMETERS = Kind("Parameters", lambda number: units.NOTHING if number is None else units.amount(number))
PERPLEXITY = Kind("Perplexity", plain(2), times=multiple, best=SMALLER)
DIVERGENCE = Kind("KL from the original", plain(3), "nats per token", best=SMALLER)
AGREEMENT = Kind("Same first token", units.share, best=LARGER)
READING = Kind("Reading", plain(1), "tokens/s", times=multiple)
WRITING = Kind("Writing", plain(1), "tokens/s", times=multiple)
MEMORY = Kind("Peak memory", units.size, times=multiple)


def models_of(job: Job) -> list[Model]:
    """Return the measured models of a job: the original first; of several ratios, the result of each."""
    if job.metrics is None:
        return []
    found = job.metrics
    before = found.before
    if job.sweep:
        results = [Model(units.ratio(each.target_ratio), each.metrics.after, before) for each in job.sweep]
    else:
        results = [Model("Result", found.after, before)]
        results += [Model(name, metrics, before) for name, metrics in found.formats.items()]
        if found.baseline is not None:
            results.append(Model("Blocks dropped", found.baseline, before))
    return [Model("Original", before), *results]


@dataclass(frozen=True)
class Curves:
    """Quality against the achieved ratios of a job with several: both coordinates of every point."""

    perplexity: tuple[list[float], list[float]]
    divergence: tuple[list[float], list[float]] | None


def curves_of(job: Job) -> Curves | None:
    """Return the curves of a job with several ratios, on its first text; None for any other job."""
    results = sorted(job.sweep, key=lambda result: result.achieved_ratio)
    if not results:
        return None
    text = next(iter(results[0].metrics.before.perplexity))
    ratios = [result.achieved_ratio for result in results]
    multiples = [each.metrics.after.perplexity[text] / each.metrics.before.perplexity[text] for each in results]
    divergences = [result.metrics.after.kl_divergence.get(text) for result in results]
    known = [value for value in divergences if value is not None]
    return Curves((ratios, multiples), (ratios, known) if len(known) == len(ratios) else None)


def columns_of(jobs: Sequence[Job]) -> list[tuple[Job, Model]]:
    """Return the results of jobs, one for each ratio."""
    columns = []
    for job in jobs:
        results = [(units.ratio(result.target_ratio), result.metrics) for result in job.sweep]
        if not results and job.metrics is not None:
            results = [(units.ratios(job.recipe.ratios), job.metrics)]
        columns += [(job, Model(name, found.after, found.before)) for name, found in results]
    return columns


def lines(models: Sequence[Model], *, mark_best: bool = False) -> list[Line]:
    """Return a line for each figure that one of the models has."""
    texts = list(dict.fromkeys(text for model in models for text in model.metrics.perplexity))
    found = [
        line(SIZE, models, lambda metrics: metrics.bytes, mark_best),
        line(PARAMETERS, models, lambda metrics: metrics.parameters, mark_best),
    ]
    for text in texts:
        for kind, field in ((PERPLEXITY, "perplexity"), (DIVERGENCE, "kl_divergence"), (AGREEMENT, "top1_agreement")):
            found.append(line(kind, models, of_text(field, text), mark_best, text if len(texts) > 1 else ""))
    found += task_lines(models)
    found += [
        line(READING, models, lambda metrics: metrics.prefill_tokens_per_second, mark_best),
        line(WRITING, models, lambda metrics: metrics.decode_tokens_per_second, mark_best),
        line(MEMORY, models, lambda metrics: metrics.peak_memory_bytes, mark_best),
    ]
    return [each for each in found if any(cell.text != units.NOTHING for cell in each.cells)]


def of_text(field: str, text: str) -> Figure:
    """Return a function from a model to its figure on one text."""
    return lambda metrics: getattr(metrics, field).get(text)


def line(kind: Kind, models: Sequence[Model], figure: Figure, mark_best: bool, text: str = "") -> Line:
    """Return the line of a figure."""
    values = [figure(model.metrics) for model in models]
    known = [value for value in values if value is not None]
    best = kind.best(known) if mark_best and kind.best is not None and len(set(known)) > 1 else None
    cells = (cell(kind, model, figure, value == best) for model, value in zip(models, values, strict=True))
    return Line(kind.name, ", ".join(filter(None, (text, kind.about))), tuple(cells))


def cell(kind: Kind, model: Model, figure: Figure, is_best: bool) -> Cell:
    """Return a figure of one model."""
    value = figure(model.metrics)
    before = None if model.original is None else figure(model.original)
    beside = kind.times(value / before) if kind.times is not None and value is not None and before else ""
    return Cell(kind.show(value), None if model.original is None else beside, is_best and value is not None)


def task_lines(models: Sequence[Model]) -> Iterator[Line]:
    """Yield a line for each metric of a task."""
    asked = dict.fromkeys(
        (task, metric) for model in models for task, found in model.metrics.tasks.items() for metric in found.metrics
    )
    for task, metric in asked:
        shown = [model.metrics.task_metric(task, metric) for model in models]
        yield Line(task, metric, tuple(Cell(units.NOTHING if each is None else str(each)) for each in shown))


def incomparable(jobs: Sequence[Job]) -> list[str]:
    """Return the texts that two of the jobs were measured on in different ways."""
    ways: dict[str, set[str]] = {}
    for job in jobs:
        found = job.metrics
        for text, protocol in (found.protocols if found is not None else {}).items():
            ways.setdefault(text, set()).add(protocol.id)
    return [text for text, ids in ways.items() if len(ids) > 1]
