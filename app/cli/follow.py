"""A job from the posting of its recipe to its checkpoint on this disk."""

from collections.abc import Callable
from pathlib import Path

from app.cli.progress import DownloadProgress, progress_display, show_job
from app.cli.tables import asked, comparison_table, failure_line, reached, sweep_table
from app.cli.terminal import STDOUT
from app.client import Client
from app.contract.job import Job, State
from app.errors import ModelpressError


class JobNotSucceeded(ModelpressError):
    code = "job_not_succeeded"
    title = "The job did not succeed"


def follow(client: Client, job_id: str, check: Callable[[], None]) -> Job:
    """Shows the job's progress until it has a result, and calls `check` at every look.

    Raises JobNotSucceeded where it ends without one.
    """
    with progress_display(STDOUT) as display:
        for job in client.wait(job_id):
            check()
            show_job(display, job)
    if "checkpoint" not in job.links:
        check_success(job)
    return job


def check_success(job: Job) -> None:
    """Raises JobNotSucceeded for a job that ended otherwise; it may have a result nevertheless."""
    if job.state is State.FAILED:
        raise JobNotSucceeded(f"Job {job.id} failed. {failure_line(job)}")
    if job.state is State.CANCELLED:
        raise JobNotSucceeded(f"Job {job.id} was cancelled.")


def download(client: Client, job_id: str, directory: Path) -> None:
    """Fetches the checkpoint and says where it is."""
    artifacts = client.artifacts(job_id)
    if not artifacts:
        raise JobNotSucceeded(f"Job {job_id} has no checkpoint: it is {client.get(job_id).state}.")
    with progress_display(STDOUT) as display:
        client.download(job_id, directory, DownloadProgress(display, sum(artifact.bytes for artifact in artifacts)))


def print_comparison(job: Job) -> None:
    if job.sweep:
        STDOUT.print(sweep_table(job.sweep))
    elif job.metrics:
        STDOUT.print(comparison_table(job.metrics))
    if job.achieved_ratio:
        STDOUT.print(f"ratio: {asked(job)} asked, {reached(job)} reached")
