"""Submit a recipe to a running service, or to one that is started for this command."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from modelpress.cli.extras import require
from modelpress.cli.follow import check_success, download, follow, print_comparison
from modelpress.cli.output import console_for, print_json
from modelpress.cli.recipes import LocalModel
from modelpress.cli.service import announce_access, extras_for
from modelpress.cli.terminal import STDERR, STDOUT
from modelpress.client import Client, ClientError
from modelpress.contract.job import Job
from modelpress.contract.recipe import Recipe

CANCEL_PATIENCE_SECONDS = 3.0


def submit_there(address: str, recipe: Recipe, idempotency_key: str | None, as_json: bool) -> None:
    """Post a job to the service at `address`, and print its id, or the whole of it as JSON."""
    with Client(address) as client:
        job = client.submit(recipe, idempotency_key)
    if as_json:
        print_json(job)
    else:
        STDOUT.print(job.id, markup=False)


def compress_there(address: str, recipe: Recipe, out: Path, idempotency_key: str | None, as_json: bool) -> None:
    """Compress with the service at `address`. After Ctrl-C the job continues there."""
    with Client(address) as client:
        job = client.submit(recipe, idempotency_key)
        console_for(as_json).print(f"{address} has accepted job {job.id}.", markup=False)
        try:
            finish(client, job, out, check=lambda: None, as_json=as_json)
        except KeyboardInterrupt:
            STDERR.print(
                f"Job {job.id} continues on the service. Watch it: modelpress show {job.id}. "
                f"Cancel it: modelpress cancel {job.id}. Download it: modelpress download {job.id} --out {out}",
                markup=False,
            )
            raise


def compress_here(recipe: Recipe, out: Path, path: LocalModel | None, as_json: bool) -> None:
    """Compress with a service of our own on a free port, which ends with this command. Ctrl-C cancels the job."""
    from app.settings import Settings

    settings = Settings()
    require("compress", *extras_for(settings))
    from app.serve import running_service

    roots = (*settings.model_roots, path.root) if path else settings.model_roots
    settings = settings.model_copy(update={"host": "127.0.0.1", "port": 0, "model_roots": roots})
    console = console_for(as_json)
    console.print(f"No service is running, so one is started here; its data is in {settings.data_dir}", markup=False)
    with (
        running_service(settings, log_dir=settings.data_dir / "logs") as service,
        Client(service.address, api_key=service.first_key, patience_seconds=5.0) as client,
    ):
        if service.first_key is not None:
            announce_access(service)
        job = client.submit(recipe)
        console.print(f"Job {job.id} is accepted.", markup=False)
        try:
            finish(client, job, out, service.check, as_json)
        except ClientError:
            service.check()
            raise
        except KeyboardInterrupt:
            STDERR.print("Cancelling the job and stopping the service. Press Ctrl-C again to stop at once.")
            cancel(service.address, job.id, service.first_key)
            raise


def finish(client: Client, job: Job, out: Path, check: Callable[[], None], as_json: bool) -> None:
    """Wait for the job, download its checkpoint to `out`, and print the comparison.

    Raises:
        JobNotSucceeded: the job failed or was cancelled, possibly with a result, which is downloaded first.
    """
    console = console_for(as_json)
    job = follow(client, job.id, check, console)
    download(client, job.id, out, console)
    if as_json:
        print_json(job)
    else:
        print_comparison(job)
    console.print(f"The checkpoint is in {out.resolve()}", markup=False)
    check_success(job)


def cancel(address: str, job_id: str, api_key: str | None) -> None:
    """Cancel the job and wait until it has ended, as long as the service answers."""
    with Client(address, api_key=api_key, patience_seconds=CANCEL_PATIENCE_SECONDS) as client, suppress(ClientError):
        client.cancel(job_id)
        for _ in client.wait(job_id):
            pass
