"""The progress of a job or a download: a live bar on a terminal, occasional lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from modelpress.cli.tables import duration
from modelpress.cli.terminal import paragraph
from modelpress.contract.job import Job

LINES_PER_JOB = 10


class ProgressDisplay(Protocol):
    """A display of progress."""

    def show(self, label: str, fraction: float, detail: str) -> None:
        """Show the current activity `label`, its progress from 0 to 1, and a detail."""


class LiveBar:
    """A progress bar that is redrawn in place."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=1.0, detail="")

    def show(self, label: str, fraction: float, detail: str) -> None:
        self._bar.update(self._task, description=label, completed=fraction, detail=str(paragraph(detail)))


class PlainLines:
    """Prints a line whenever the label changes, and at each tenth of the progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: tuple[str, int] | None = None

    def show(self, label: str, fraction: float, detail: str) -> None:
        step = (label, int(fraction * LINES_PER_JOB))
        if step != self._said:
            self._said = step
            self._console.print(Text(f"{fraction:4.0%} {label}" + (f": {paragraph(detail)}" if detail else "")))


@contextmanager
def progress_display(console: Console) -> Iterator[ProgressDisplay]:
    """Yield the display that suits the console."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield LiveBar(bar)


def show_job(display: ProgressDisplay, job: Job) -> None:
    """Show the job's stage, progress, remaining time and attempt."""
    details = [job.detail] if job.detail else []
    if job.seconds_left is not None:
        details.append(f"{duration(job.seconds_left)} left")
    if job.attempt > 1:
        details.append(f"attempt {job.attempt}")
    display.show(job.stage or job.state, job.progress, ", ".join(details))


class DownloadProgress:
    """Shows the progress of a download of several files, in bytes of all files together."""

    def __init__(self, display: ProgressDisplay, total_bytes: int) -> None:
        self._display = display
        self._total = total_bytes
        self._sizes: dict[str, int] = {}

    def __call__(self, name: str, size: int) -> None:
        self._sizes[name] = size
        have = sum(self._sizes.values())
        self._display.show("download", have / max(self._total, 1), f"{decimal(have)} of {decimal(self._total)}")
