"""Tables and paragraphs that show jobs to people."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.filesize import decimal
from rich.table import Column, Table

from modelpress.cli.terminal import STDOUT
from modelpress.contract.estimate import Estimate
from modelpress.contract.event import JobEvent
from modelpress.contract.job import Comparison, Job, JobSummary, Metrics, SweepResult
from modelpress.contract.recipe import Recipe
from modelpress.contract.worker import Worker
from modelpress.spec.methods import METHODS


@dataclass(frozen=True)
class Figure:
    """One row of a comparison: a figure's name, its text for a model, and its change."""

    name: str
    shown: Callable[[Metrics], str]
    change: str = ""


def comparison_table(comparison: Comparison) -> Table:
    """Return a table of the original, the result, the change, and the other formats and baseline, if measured."""
    before, after = comparison.before, comparison.after
    others = dict(comparison.formats)
    if comparison.baseline is not None:
        others["blocks dropped"] = comparison.baseline
    table = Table("", "before", "after", "change", *others)
    for column in table.columns[1:]:
        column.justify = "right"
    for figure in figures(before, after):
        more = map(figure.shown, others.values())
        table.add_row(figure.name, figure.shown(before), figure.shown(after), figure.change, *more)
    return table


def sweep_table(results: Sequence[SweepResult]) -> Table:
    """Return a table with a row for the original and one for the result of each ratio."""
    before = results[0].metrics.before
    perplexities = (f"perplexity, {dataset}" for dataset in before.perplexity)
    table = Table("ratio", "achieved", "method", "stored parameters", "bytes", *perplexities, "directory")
    for column in table.columns[3:-1]:
        column.justify = "right"
    table.add_row("1", "1", "", *figures_of(before), "")
    for result in results:
        reached = f"{result.achieved_ratio:.4g}"
        figures = figures_of(result.metrics.after)
        table.add_row(f"{result.target_ratio:g}", reached, result.method, *figures, result.directory)
    return table


def figures_of(model: Metrics) -> list[str]:
    """Return a model's parameters, bytes and perplexity on each dataset as text."""
    perplexities = (f"{perplexity:.2f}" for perplexity in model.perplexity.values())
    return [f"{model.parameters:,}", decimal(model.bytes), *perplexities]


def figures(before: Metrics, after: Metrics) -> Iterator[Figure]:
    """Yield a row for each figure of the two models, including those that only the result has."""
    smaller = f"{before.parameters / after.parameters:.3f} times smaller"
    yield Figure("stored parameters", lambda model: f"{model.parameters:,}", smaller)
    yield Figure("bytes", lambda model: decimal(model.bytes), f"{before.bytes / after.bytes:.3f} times smaller")
    for dataset in after.kl_divergence:
        yield Figure(f"KL divergence, {dataset}", of_dataset("kl_divergence", dataset, ".3f", " nats"))
    for dataset in after.top1_agreement:
        yield Figure(f"same top token, {dataset}", of_dataset("top1_agreement", dataset, ".1%"))
    for dataset, perplexity in before.perplexity.items():
        reached = after.perplexity.get(dataset)
        if reached is not None:
            change = f"{reached / perplexity:.2f} times"
            yield Figure(f"perplexity, {dataset}", of_dataset("perplexity", dataset, ".2f"), change)
    yield from task_figures(before, after)
    if before.peak_memory_bytes is not None and after.peak_memory_bytes is not None:
        change = f"{after.peak_memory_bytes / before.peak_memory_bytes:.2f} times"
        yield Figure("peak memory, running", of_memory, change)
    for name, field in (("reading", "prefill_tokens_per_second"), ("writing", "decode_tokens_per_second")):
        slow, fast = getattr(before, field), getattr(after, field)
        if slow is None or fast is None:
            # One of the two does not fit into the worker's memory, and so was not timed.
            continue
        yield Figure(f"tokens/s, {name}", of_model(field), f"{fast / slow:.2f} times")


def task_figures(before: Metrics, after: Metrics) -> Iterator[Figure]:
    """Yield a row for each figure of an lm-eval task, or one that says why the tasks were skipped."""
    if before.tasks_skipped or after.tasks_skipped:
        yield Figure("tasks", lambda model: model.tasks_skipped or "")
    for task, result in after.tasks.items():
        for name, reached in result.metrics.items():
            known = before.task_metric(task, name)
            value = None if known is None else known.value
            change = "" if value is None or reached.value is None else f"{reached.value - value:+.4f}"
            yield Figure(f"{name}, {task}", of_task(task, name), change)


def of_task(task: str, name: str) -> Callable[[Metrics], str]:
    """Return a function from a model to its figure on a task, or '' if it has none."""
    return lambda model: str(model.task_metric(task, name) or "")


def of_memory(model: Metrics) -> str:
    """Return a model's peak memory as text, or '' if it was not measured."""
    return "" if model.peak_memory_bytes is None else decimal(model.peak_memory_bytes)


def of_dataset(field: str, dataset: str, form: str, unit: str = "") -> Callable[[Metrics], str]:
    """Return a function from a model to its figure on one dataset, or '' if it has none."""

    def shown(model: Metrics) -> str:
        value = getattr(model, field).get(dataset)
        return "" if value is None else f"{value:{form}}{unit}"

    return shown


def of_model(field: str) -> Callable[[Metrics], str]:
    """Return a function from a model to its figure `field`, or '' if it has none."""

    def shown(model: Metrics) -> str:
        value = getattr(model, field)
        return "" if value is None else f"{value:,.1f}"

    return shown


def options_of(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each method option that differs from its default."""
    defaults = METHODS[recipe.method.name].options().model_dump()
    for name, value in recipe.method.model_dump().items():
        if value != defaults[name]:
            yield name, value


def job_table(jobs: Iterable[JobSummary]) -> Table:
    """Return a table with a row for each job."""
    table = plain_table(Column("job", no_wrap=True), "state", "progress", "model", "ratio", "method", "queued")
    for job in jobs:
        table.add_row(
            job.id,
            job.state,
            f"{job.progress:.0%}",
            job.model,
            ratios_text(job.target_ratio),
            job.method,
            moment(job.timestamps.queued),
        )
    return table


def worker_table(workers: Iterable[Worker]) -> Table:
    """Return a table with a row for each worker."""
    table = plain_table(Column("worker", no_wrap=True), "state", "device", "memory", "labels", "job", "heard of")
    for worker in workers:
        labels = ", ".join(worker.labels)
        memory = "" if worker.gpu_memory_bytes is None else f"{worker.gpu_memory_bytes / 2**30:.0f} GiB"
        device = worker.gpu or worker.device
        table.add_row(worker.id, worker.state, device, memory, labels, worker.job or "", moment(worker.beat_at))
    return table


def plain_table(*columns: Column | str) -> Table:
    """Return a table that has no lines where it is printed into a file or a pipe."""
    return Table(*columns) if STDOUT.is_terminal else Table(*columns, box=None, pad_edge=False)


def event_line(event: JobEvent) -> str:
    """Return what happened as a line."""
    told = event.data.get("line") or " ".join(f"{name}={value}" for name, value in event.data.items())
    return f"{moment(event.at)} {event.kind} {told}"


def estimate_lines(estimate: Estimate) -> str:
    """Return an estimate, one name and value a line."""
    lines = [("accepted", "yes" if estimate.accepted else "no")]
    lines += [("refused", f"{error['field']}: {error['message']}") for error in estimate.errors]
    if estimate.range is not None:
        lines.append(("ratios", f"{estimate.range.lowest:.4g} to {estimate.range.highest:.4g}"))
    lines.append(("before", decimal(estimate.bytes_before)))
    lines += [("after", f"{decimal(size.bytes)} at {size.target_ratio:g}") for size in estimate.sizes]
    lines += [("memory", f"about {decimal(estimate.memory_bytes)}"), ("disk", f"about {decimal(estimate.disk_bytes)}")]
    for time in estimate.times:
        lines.append(("time", f"{duration(time.seconds)} on {time.device}, from {time.attempts} finished attempts"))
    return "\n".join(f"{name:<12}{value}" for name, value in lines)


def job_details(job: Job) -> str:
    """Return everything about one job except its measurements, one name and value a line."""
    return "\n".join(f"{name:<12}{value}" for name, value in job_facts(job))


def job_facts(job: Job) -> Iterable[tuple[str, str]]:
    """Yield name and value of everything about one job except its measurements."""
    yield "job", job.id
    yield "state", job.state
    if job.stage:
        yield "stage", f"{job.stage}, {job.progress:.0%}" + (f", {job.detail}" if job.detail else "")
    if job.waiting is not None:
        nobody = "" if job.waiting.workers else "; no worker takes such jobs"
        yield "waiting", f"number {job.waiting.position}{nobody}"
    if job.seconds_left is not None:
        yield "left", duration(job.seconds_left)
    yield "model", job.recipe.model + (f", at commit {job.source.revision}" if job.source.revision else "")
    yield "parameters", f"{job.source.parameters:,} ({job.source.model_type})"
    for warning in job.warnings:
        yield "warning", warning
    yield "method", " ".join([job.recipe.method.name, *(f"{name}={value}" for name, value in options_of(job.recipe))])
    yield (
        "ratio",
        f"{requested_ratios(job)} requested" + (f", {achieved_ratios(job)} achieved" if job.achieved_ratio else ""),
    )
    for name, at in job.timestamps:
        if at is not None:
            yield name, moment(at)
    for attempt in job.attempts:
        resumed = attempt.resumed
        block = f", block {resumed.block}" if resumed and resumed.block is not None else ""
        resumption = f", resumed at {resumed.stage}{block}" if resumed else ""
        yield f"attempt {attempt.number}", f"{attempt.outcome or 'running'} on {attempt.worker}{resumption}"
    if job.error:
        yield "error", failure_line(job)


def requested_ratios(job: Job) -> str:
    """Return the target ratios of a job as text."""
    return ratios_text(job.recipe.ratios)


def ratios_text(ratios: float | Sequence[float]) -> str:
    """Return one target ratio, or several, as text."""
    return ", ".join(f"{ratio:g}" for ratio in (ratios if isinstance(ratios, Sequence) else (ratios,)))


def achieved_ratios(job: Job) -> str:
    """Return the achieved ratios of a job that has a result as text."""
    ratios = [result.achieved_ratio for result in job.sweep] or [job.achieved_ratio or 0.0]
    return ", ".join(f"{ratio:.4g}" for ratio in ratios)


def failure_line(job: Job) -> str:
    """Return why and where a job failed, and whether posting it again can help."""
    if job.error is None:
        return f"the job is {job.state}"
    where = f" in {job.error.stage}" if job.error.stage else ""
    advice = (
        "Posting the same recipe again can help."
        if job.error.retryable
        else "Posting the same recipe again will not help."
    )
    return f"{job.error.code}{where}: {job.error.message}. {advice}".replace("..", ".")


def duration(seconds: float) -> str:
    """Return a duration rounded for a waiting person: '40 s', '12 min', '3 h 20 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(at: datetime) -> str:
    """Return a point in time in the local time zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
