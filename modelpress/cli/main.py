"""The application that holds all commands."""

from importlib.metadata import version
from typing import Annotated

import typer

from modelpress.cli import control, jobs, service, webhooks
from modelpress.cli.failures import failures_explained

application = typer.Typer(
    name="modelpress",
    help="Compresses transformer language models: runs the service, or acts as its client. Exit codes of client "
    "commands: 1 the job failed, 2 the request is refused, 3 the result misses the gate, 4 the service or its workers "
    "failed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
service.register(application)
jobs.register(application)
control.register(application)
webhooks.register(application)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if wanted."""
    if wanted:
        typer.echo(f"modelpress {version('modelpress')}")
        raise typer.Exit


@application.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Accept the options that belong to no command."""


def main() -> None:
    """Run the command line."""
    with failures_explained():
        application(prog_name="modelpress")
