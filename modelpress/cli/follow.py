"""Follow a job until it ends, and download its checkpoint."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from modelpress.cli.progress import DownloadProgress, progress_display, show_job
from modelpress.cli.tables import achieved_ratios, comparison_table, failure_line, requested_ratios, sweep_table
from modelpress.cli.terminal import STDOUT
from modelpress.client import Client
from modelpress.contract.job import Failure, Job, State
from modelpress.errors import ModelpressError


class JobNotSucceeded(ModelpressError):
    """The job failed, was cancelled, or has no checkpoint."""

    code = "job_not_succeeded"
    title = "The job did not succeed"

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.failure = failure


def follow(client: Client, job_id: str, check: Callable[[], None], console: Console = STDOUT) -> Job:
    """Show the job's progress until it ends, and return it. `check` is called at every poll.

    Raises:
        JobNotSucceeded: it ended without a checkpoint.
    """
    with progress_display(console) as display:
        for job in client.wait(job_id, poll_seconds=1.0):
            check()
            show_job(display, job)
    if "checkpoint" not in job.links:
        check_success(job)
    return job


def check_success(job: Job) -> None:
    """Check that the job has succeeded; a failed job may have a checkpoint nevertheless.

    Raises:
        JobNotSucceeded: it failed or was cancelled.
    """
    if job.state is State.FAILED:
        raise JobNotSucceeded(f"Job {job.id} failed. {failure_line(job)}", job.error)
    if job.state is State.CANCELLED:
        raise JobNotSucceeded(f"Job {job.id} was cancelled.")


def download(client: Client, job_id: str, directory: Path, console: Console = STDOUT) -> None:
    """Download the job's checkpoint into `directory`, showing the progress.

    Raises:
        JobNotSucceeded: the job has no checkpoint.
    """
    artifacts = client.artifacts(job_id)
    if not artifacts:
        raise JobNotSucceeded(f"Job {job_id} has no checkpoint: it is {client.get(job_id).state}.")
    with progress_display(console) as display:
        client.download(job_id, directory, DownloadProgress(display, sum(artifact.bytes for artifact in artifacts)))


def print_comparison(job: Job) -> None:
    """Print the measurements of original and result, if the job has a result."""
    if job.sweep:
        STDOUT.print(sweep_table(job.sweep))
    elif job.metrics:
        STDOUT.print(comparison_table(job.metrics))
    if job.achieved_ratio:
        STDOUT.print(f"ratio: {requested_ratios(job)} requested, {achieved_ratios(job)} achieved")
