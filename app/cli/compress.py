"""Having a recipe done: by a service that runs, or by one that is started here for the occasion."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.cli.extras import require
from app.cli.follow import check_success, download, follow, print_comparison
from app.cli.recipes import LocalModel
from app.cli.service import extras_for
from app.cli.terminal import STDERR, STDOUT
from app.client import Client, ClientError
from app.contract.job import Job
from app.contract.recipe import Recipe
from app.settings import Settings

CANCEL_PATIENCE_SECONDS = 3.0


def compress_there(address: str, recipe: Recipe, out: Path) -> None:
    """By the service at `address`. A Ctrl-C leaves the job to it."""
    with Client(address) as client:
        job = client.submit(recipe)
        STDOUT.print(f"{address} has accepted job {job.id}.", markup=False)
        try:
            finish(client, job, out, check=lambda: None)
        except KeyboardInterrupt:
            STDERR.print(
                f"Job {job.id} goes on without you. Watch it: modelpress show {job.id}. "
                f"End it: modelpress cancel {job.id}. Fetch it: modelpress download {job.id} --out {out}",
                markup=False,
            )
            raise


def compress_here(recipe: Recipe, out: Path, path: LocalModel | None) -> None:
    """By a service of our own on a free port, which ends with this command. A Ctrl-C cancels the job."""
    settings = Settings()
    require("compress", *extras_for(settings))
    from app.serve import running_service

    roots = (*settings.model_roots, path.root) if path else settings.model_roots
    settings = settings.model_copy(update={"host": "127.0.0.1", "port": 0, "model_roots": roots})
    STDOUT.print(f"No service answers, so one is started here; its data lies in {settings.data_dir}", markup=False)
    with (
        running_service(settings, log_dir=settings.data_dir / "logs") as service,
        Client(service.address, patience_seconds=5.0) as client,
    ):
        job = client.submit(recipe)
        STDOUT.print(f"Job {job.id} is accepted.", markup=False)
        try:
            finish(client, job, out, service.check)
        except ClientError:
            service.check()
            raise
        except KeyboardInterrupt:
            STDERR.print("Cancelling the job and ending the service. Ctrl-C again does not wait for them.")
            cancel(service.address, job.id)
            raise


def finish(client: Client, job: Job, out: Path, check: Callable[[], None]) -> None:
    """Waits for the job, fetches its checkpoint, and says what came out.

    Raises JobNotSucceeded, in the end, also for a result that is not as good as the recipe asks.
    """
    job = follow(client, job.id, check)
    download(client, job.id, out)
    print_comparison(job)
    STDOUT.print(f"The checkpoint is in {out.resolve()}", markup=False)
    check_success(job)


def cancel(address: str, job_id: str) -> None:
    """Cancels the job and waits until nothing computes any more, as far as the service still answers."""
    with Client(address, patience_seconds=CANCEL_PATIENCE_SECONDS) as client, suppress(ClientError):
        client.cancel(job_id)
        for _ in client.wait(job_id):
            pass
