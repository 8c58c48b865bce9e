"""The client's commands: compress, estimate, jobs, show, cancel, download."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from modelpress.cli.compress import compress_here, compress_there, submit_there
from modelpress.cli.connection import JobId, Url, connect, running_service_address
from modelpress.cli.follow import download as fetch
from modelpress.cli.follow import print_comparison
from modelpress.cli.options import RECIPE_OPTIONS, recipe_fields, take_options
from modelpress.cli.output import Json, print_json, print_json_lines
from modelpress.cli.recipes import LocalModel, local_model, make_recipe, merged, pairs_of, read_recipe
from modelpress.cli.tables import estimate_lines, job_details, job_table
from modelpress.cli.terminal import STDOUT, paragraph
from modelpress.client import Wanted
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused

LARGEST_PAGE = 100

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the checkpoint.")]
Model = Annotated[
    str | None, typer.Argument(help="'org/name[@revision]', 'local:NAME', or a path to a directory or .gguf file.")
]
Ratio = Annotated[
    list[float] | None,
    typer.Option(
        help="Bytes of the weights before / after: 4 means 4 times smaller. Repeat it for a checkpoint of each ratio."
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="A recipe in YAML or JSON; the other options change fields of it."),
]


def register(application: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (compress, estimate, jobs, show, cancel, download):
        application.command(command.__name__, rich_help_panel="Client")(command)


def compress(
    model: Model = None,
    ratio: Ratio = None,
    recipe: RecipeFile = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory for the checkpoint.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Post the job, print its id and end.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A text of yours: posting again with it makes no second job.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Compress a model and download the result.

    The service at --url does the work, by default the one on this machine. If none runs here, one is started for the
    duration of this command.
    """
    wanted, path = asked_recipe(model, ratio, recipe, options)
    if detach:
        submit_there(address_for(url, path, "--detach"), wanted, idempotency_key, as_json)
        return
    if out is None:
        raise Refused("--out", "name a directory for the checkpoint, or send --detach to only post the job")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused("--out", f"{out} exists and is not empty; name another directory")
    address = url or running_service_address()
    if address is None:
        compress_here(wanted, out, path, as_json)
    else:
        compress_there(address_for(address, path, "model"), wanted, out, idempotency_key, as_json)


def estimate(
    model: Model = None,
    ratio: Ratio = None,
    recipe: RecipeFile = None,
    url: Url = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Say what a job would take and make, without posting it."""
    wanted, path = asked_recipe(model, ratio, recipe, options)
    with connect(address_for(url, path, "model")) as client:
        found = client.estimate(wanted)
    if as_json:
        print_json(found)
    else:
        STDOUT.print(paragraph(estimate_lines(found)))


for command in (compress, estimate):
    take_options(command, RECIPE_OPTIONS)


def asked_recipe(
    model: str | None, ratio: list[float] | None, recipe: Path | None, options: dict[str, Any]
) -> tuple[Recipe, LocalModel | None]:
    """Return the recipe of a file, changed by the options, and the local path that its model is, if any."""
    fields = {} if recipe is None else read_recipe(recipe)
    path = None
    if model is not None:
        path = local_model(model)
        fields["model"] = path.reference if path else model
    if ratio:
        fields["target_ratio"] = ratio if len(ratio) > 1 else ratio[0]
        fields.pop("target_bytes", None)
    changes = recipe_fields(options)
    if "target_bytes" in changes:
        fields.pop("target_ratio", None)
    return make_recipe(merged(fields, changes)), path


def address_for(url: str | None, path: LocalModel | None, field: str) -> str:
    """Return the address of the service that is asked.

    Raises:
        Refused: none runs here, or the model is a local path, which a running service cannot open.
    """
    address = url or running_service_address()
    if address is None:
        raise Refused(field, "no service runs on this machine; start one by `modelpress serve`, or name one by --url")
    if path is not None:
        raise Refused(
            "model",
            f"{path.path} is a path on this machine, but the service at {address} only opens models in its own "
            "MODELPRESS_MODEL_ROOTS; send 'local:NAME' for one of those",
        )
    return address


def jobs(
    url: Url = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of jobs to list, at most.")] = 20,
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs with this model.")] = None,
    method: Annotated[str | None, typer.Option(help="Only jobs with this method.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this pair. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    wanted = Wanted(state, model, method, pairs_of(metadata or (), "--metadata", "team=search"))
    with connect(url) as client:
        found = list(islice(client.jobs(wanted, page_size=min(limit, LARGEST_PAGE)), limit))
    if as_json:
        print_json_lines(found)
    elif found:
        STDOUT.print(job_table(found))
    else:
        STDOUT.print("There are no such jobs.")


def show(job_id: JobId, url: Url = None, as_json: Json = False) -> None:
    """Show one job, with its measurements once it has a result."""
    with connect(url) as client:
        job = client.get(job_id)
    if as_json:
        print_json(job)
    else:
        STDOUT.print(paragraph(job_details(job)))
        print_comparison(job)


def cancel(job_id: JobId, url: Url = None, as_json: Json = False) -> None:
    """Cancel a job that has not ended."""
    with connect(url) as client:
        job = client.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        STDOUT.print(f"Job {job.id} is {job.state}.", markup=False)


def download(job_id: JobId, out: Out, url: Url = None) -> None:
    """Download the checkpoint of a job, or resume a download that broke off."""
    with connect(url) as client:
        fetch(client, job_id, out)
    STDOUT.print(f"The checkpoint is in {out.resolve()}", markup=False)
