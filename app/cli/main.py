"""The commands, and the one place where errors become words and exit codes."""

import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from app.cli import jobs, service
from app.cli.extras import ExtraMissing
from app.cli.terminal import STDERR, paragraph
from app.client import ClientError, ProblemError
from app.errors import ModelpressError, Refused
from app.settings import Settings

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

application = typer.Typer(
    name="modelpress",
    help="Makes transformer language models smaller: as a service, and as its client.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
service.register(application)
jobs.register(application)


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"modelpress {version('modelpress')}")
        raise typer.Exit


@application.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that belong to no command."""


def main() -> None:
    try:
        application()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ValidationError as error:
        give_up("\n".join(settings_lines(error)), MISUSED)
    except ProblemError as error:
        give_up(str(error), MISUSED if 400 <= error.status < 500 else FAILED)
    except Refused as error:
        give_up(f"{error.field}: {error.message}", MISUSED)
    except ExtraMissing as error:
        give_up(str(error), MISUSED)
    except (ClientError, ModelpressError) as error:
        give_up(str(error), FAILED)


def give_up(message: str, code: int) -> NoReturn:
    STDERR.print(paragraph(message), style="red")
    sys.exit(code)


def settings_lines(error: ValidationError) -> list[str]:
    """One line for each setting that the environment got wrong."""
    prefix = Settings.model_config["env_prefix"]
    return [f"{prefix}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors(include_input=False)]
