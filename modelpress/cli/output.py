"""What commands print for programs: JSON on standard output, while all that is for people goes to standard error."""

from collections.abc import Iterable
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console

from modelpress.cli.terminal import STDERR, STDOUT

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as the API answers it.")]


def console_for(as_json: bool) -> Console:
    """Return where to print what is for people."""
    return STDERR if as_json else STDOUT


def print_json(answer: BaseModel) -> None:
    """Print an answer of the API as one line of JSON."""
    typer.echo(answer.model_dump_json())


def print_json_lines(answers: Iterable[BaseModel]) -> None:
    """Print answers of the API, one a line."""
    for answer in answers:
        print_json(answer)
