"""The command that compares finished files with the database."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.progress import Progress

from modelpress.cli.extras import require
from modelpress.cli.output import Json
from modelpress.cli.terminal import STDERR, STDOUT, paragraph

if TYPE_CHECKING:
    from app.jobs.verification import Verification

DAMAGED = 1


def verify(as_json: Json = False) -> None:
    """Read every finished file, and compare its size and SHA-256 with the database, as after a restore.

    Needs MODELPRESS_DATA_DIR, and the database: that of MODELPRESS_DATABASE_URL, or else the embedded one, while
    `modelpress serve` is not running. Nothing is changed. The exit code is 1 if a file is missing, damaged or
    unreadable.
    """
    from app.settings import Settings

    settings = Settings()
    require("verify", "server", *(["embedded"] if settings.database_url is None else []))
    from app.db import make_engine, make_sessions
    from app.jobs.installation import claim_files
    from app.jobs.verification import verify as compare
    from app.serve import database
    from app.storage.registry import open_storage

    with database(settings) as url:
        engine = make_engine(url)
        try:
            sessions, storage = make_sessions(engine), open_storage(settings.artifacts_url)
            claim_files(settings, sessions, storage)
            with progress() as report:
                found = compare(sessions, storage, report)
        finally:
            engine.dispose()
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        tell(found)
    if found.damages:
        raise typer.Exit(DAMAGED)


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """Yield what shows how many bytes are done of how many, on a terminal."""
    with Progress(console=STDERR, transient=True, disable=not STDERR.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def tell(found: "Verification") -> None:
    """Print what was found, for people."""
    for damage in found.damages:
        STDOUT.print(paragraph(f"{damage.job_id}/{damage.name} {damage.what}"))
    if found.unknown:
        jobs = ", ".join(found.unknown[:10]) + (" …" if len(found.unknown) > 10 else "")
        STDOUT.print(f"There are files of {len(found.unknown)} jobs that the database does not know: {jobs}")
    whole = found.files - len(found.damages)
    STDOUT.print(
        f"{whole} of {found.files} files of {found.jobs} jobs and {found.uploads} uploads are whole "
        f"({found.bytes / 1e9:.2f} GB were read)."
    )
