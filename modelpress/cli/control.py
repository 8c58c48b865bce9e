"""The client's commands on jobs that were posted: wait, logs, retry, delete; on text of its own; and on workers."""

from pathlib import Path
from typing import Annotated

import typer

from modelpress.cli.connection import JobId, Url, connect
from modelpress.cli.follow import check_success, follow, print_comparison
from modelpress.cli.output import Json, console_for, print_json, print_json_lines
from modelpress.cli.tables import event_line, worker_table
from modelpress.cli.terminal import STDOUT, paragraph


def register(application: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (wait, logs, retry, delete, upload, uploads, delete_upload, workers):
        application.command(command.__name__.replace("_", "-"), rich_help_panel="Client")(command)


def wait(job_id: JobId, url: Url = None, as_json: Json = False) -> None:
    """Wait until a job has ended. The exit code tells how: see `modelpress --help`."""
    console = console_for(as_json)
    with connect(url) as client:
        job = follow(client, job_id, check=lambda: None, console=console)
    if as_json:
        print_json(job)
    else:
        print_comparison(job)
    check_success(job)


def logs(
    job_id: JobId,
    url: Url = None,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print what has happened to a job: its states and stages, figures on the way, and lines of its log."""
    with connect(url) as client:
        happened = client.follow(job_id) if following else client.events(job_id)
        if as_json:
            print_json_lines(happened)
        else:
            for event in happened:
                STDOUT.print(paragraph(event_line(event)))


def retry(job_id: JobId, url: Url = None, as_json: Json = False) -> None:
    """Post a failed or cancelled job again. The new job goes on with what the old one has finished."""
    with connect(url) as client:
        job = client.retry(job_id)
    if as_json:
        print_json(job)
    else:
        STDOUT.print(job.id, markup=False)


def delete(job_id: JobId, url: Url = None) -> None:
    """Delete a job that has ended, with its files."""
    with connect(url) as client:
        client.delete(job_id)
    STDOUT.print(f"Job {job_id} is deleted.", markup=False)


def upload(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A .txt file, or a .jsonl file with a document a line.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send a file of text, and print the id by which recipes name it. A broken upload goes on where it was."""
    with connect(url) as client:
        sent = client.upload(path)
    if as_json:
        print_json(sent)
    else:
        STDOUT.print(sent.id, markup=False)


def uploads(url: Url = None, as_json: Json = False) -> None:
    """List the files of text that the team has sent, newest first."""
    with connect(url) as client:
        found = tuple(client.uploads())
    if as_json:
        print_json_lines(found)
    else:
        for each in found:
            arrived = "" if each.completed_at else f", of which {each.received:,} have arrived"
            STDOUT.print(paragraph(f"{each.id}  {each.name}  {each.bytes:,} bytes{arrived}"))


def delete_upload(upload_id: Annotated[str, typer.Argument(metavar="ID")], url: Url = None) -> None:
    """Delete a file of text that no unfinished job needs."""
    with connect(url) as client:
        client.delete_upload(upload_id)
    STDOUT.print(f"Upload {upload_id} is deleted.", markup=False)


def workers(url: Url = None, as_json: Json = False) -> None:
    """List the workers of the service."""
    with connect(url) as client:
        found = client.workers()
    if as_json:
        print_json_lines(found)
    elif found:
        STDOUT.print(worker_table(found))
    else:
        STDOUT.print("There are no workers.")
