"""The client's commands: compress, jobs, show, cancel, download."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.compress import compress_here, compress_there
from app.cli.follow import download as fetch
from app.cli.follow import print_comparison
from app.cli.options import RECIPE_OPTIONS, recipe_fields, take_options
from app.cli.recipes import LocalModel, local_model, make_recipe
from app.cli.tables import job_details, job_table
from app.cli.terminal import STDOUT, paragraph
from app.client import Client
from app.contract.job import State
from app.contract.recipe import Recipe
from app.errors import Refused

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str | None, typer.Option("--url", envvar="MODELPRESS_URL", help="Address of the service.", show_default=DEFAULT_URL)
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the checkpoint.")]


def register(application: typer.Typer) -> None:
    """Add the commands to the application."""
    for name, command in (("compress", compress), ("jobs", jobs), ("show", show), ("cancel", cancel)):
        application.command(name, rich_help_panel="Client")(command)
    application.command("download", rich_help_panel="Client")(download)


def compress(
    model: Annotated[
        str, typer.Argument(help="'org/name[@revision]', 'local:NAME', or a path to a directory or .gguf file.")
    ],
    out: Out,
    ratio: Annotated[
        list[float] | None,
        typer.Option(
            help="Bytes of the weights before / after: 4 means 4 times smaller. Repeat it for a checkpoint of each "
            "ratio."
        ),
    ] = None,
    url: Url = None,
    **options: Any,
) -> None:
    """Compress a model and download the result.

    The service at --url does the work, by default the one on this machine. If none runs here, one is started for the
    duration of this command.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused("--out", f"{out} exists and is not empty; name another directory")
    path = local_model(model)
    fields: dict[str, Any] = {"model": path.reference if path else model}
    if ratio:
        fields["target_ratio"] = ratio if len(ratio) > 1 else ratio[0]
    compress_somewhere(make_recipe(fields | recipe_fields(options)), out, path, url)


take_options(compress, RECIPE_OPTIONS)


def compress_somewhere(recipe: Recipe, out: Path, path: LocalModel | None, url: str | None) -> None:
    """Compress with the service at `url`, the one that runs on this machine, or one started for this command.

    Raises:
        Refused: the model is a local path, which a running service cannot open.
    """
    address = url or running_service_address()
    if address is None:
        compress_here(recipe, out, path)
    elif path is None:
        compress_there(address, recipe, out)
    else:
        raise Refused(
            "model",
            f"{path.path} is a path on this machine, but the service at {address} only opens models in its own "
            "MODELPRESS_MODEL_ROOTS; send 'local:NAME' for one of those",
        )


def jobs(
    url: Url = None,
    limit: Annotated[int, typer.Option(help="Number of jobs to list, at most.")] = 20,
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
) -> None:
    """List jobs, newest first."""
    with connect(url) as client:
        page = client.page(limit=limit, state=state)
    if page.jobs:
        STDOUT.print(job_table(page.jobs))
    else:
        STDOUT.print("There are no such jobs.")


def show(job_id: JobId, url: Url = None) -> None:
    """Show one job, with its measurements once it has a result."""
    with connect(url) as client:
        job = client.get(job_id)
    STDOUT.print(paragraph(job_details(job)))
    print_comparison(job)


def cancel(job_id: JobId, url: Url = None) -> None:
    """Cancel a job that has not ended."""
    with connect(url) as client:
        job = client.cancel(job_id)
    STDOUT.print(f"Job {job.id} is {job.state}.", markup=False)


def download(job_id: JobId, out: Out, url: Url = None) -> None:
    """Download the checkpoint of a job, or resume a download that broke off."""
    with connect(url) as client:
        fetch(client, job_id, out)
    STDOUT.print(f"The checkpoint is in {out.resolve()}", markup=False)


def connect(url: str | None) -> Client:
    """Return a client of the service at `url`, or of the one on this machine."""
    return Client(url or DEFAULT_URL, patience_seconds=5.0)


def running_service_address() -> str | None:
    """Return the address of the service that runs on this machine, or None."""
    with Client(DEFAULT_URL) as client:
        return DEFAULT_URL if client.is_alive() else None
