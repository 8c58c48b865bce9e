"""Commands that run the service. They import what they need beyond the client when they run."""

import logging
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from modelpress.cli.extras import require
from modelpress.cli.terminal import STDERR, STDOUT
from modelpress.cli.verify import verify
from modelpress.contract.access import KeyRequest, Scope

if TYPE_CHECKING:
    from app.serve import Service as RunningService
    from app.settings import Settings

ORPHAN_GRACE_SECONDS = 15.0

log = logging.getLogger(__name__)

Lifeline = Annotated[int | None, typer.Option(hidden=True, help="Pipe that closes when the parent ends.")]


def register(application: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (serve, api, worker, migrate, verify, team):
        application.command(rich_help_panel="Service")(command)


def serve() -> None:
    """Run the whole service: the API, one worker, and embedded servers unless given by URL. Ctrl-C stops it.

    Settings come from the environment: MODELPRESS_PORT, MODELPRESS_DATA_DIR, MODELPRESS_MODEL_ROOTS and so on.
    """
    from app.settings import Settings

    settings = Settings()
    require("serve", *extras_for(settings))
    from app.process import hide
    from app.serve import running_service

    hide()
    with running_service(settings) as service:
        try:
            STDOUT.print(f"Modelpress listens on {service.address}; its documentation is at {service.address}/docs")
            announce_access(service)
            STDOUT.print("Press Ctrl-C to stop it.")
            service.wait()
        except KeyboardInterrupt:
            STDERR.print("Stopping worker, API and servers. Press Ctrl-C again to stop them at once.")


def announce_access(service: "RunningService") -> None:
    """Say who may use the service, and show its first key, if it was made now."""
    if service.is_open:
        STDOUT.print("It asks for no keys: everyone on this machine can use it.")
    elif service.first_key is not None:
        STDOUT.print("It asks for keys. The first one has every scope and is shown this once:")
        STDOUT.print(service.first_key, markup=False)


def api(
    lifeline: Lifeline = None,
    is_open: Annotated[bool, typer.Option("--open", hidden=True, help="Ask for no keys.")] = False,
    socket_descriptor: Annotated[int | None, typer.Option("--socket", hidden=True, help="A listening socket.")] = None,
) -> None:
    """Run only the API, on MODELPRESS_HOST and MODELPRESS_PORT. Needs a database and a Redis by URL."""
    require("api", "server")
    from app.api.server import make_server
    from app.lifeline import end_with_parent
    from app.logs import configure_logs
    from app.main import create_app
    from app.process import hide
    from app.serve import address_of, claim_if_possible, listen
    from app.settings import Settings

    hide()
    settings = Settings().completed()
    configure_logs()
    log.info("api_starts", extra={"asks_for_keys": not is_open})
    if lifeline is not None:
        end_with_parent(lifeline, grace_seconds=ORPHAN_GRACE_SECONDS)
    claim_if_possible(settings)
    inherited = socket_descriptor is not None
    listener = socket.socket(fileno=socket_descriptor) if inherited else listen(settings.host, settings.port)
    if not inherited:
        STDOUT.print(f"The API listens on {address_of(listener)}")
    make_server(create_app(settings, is_open=is_open)).run(sockets=[listener])


def worker(lifeline: Lifeline = None) -> None:
    """Run one worker, which computes one job at a time. Needs a database and a Redis by URL."""
    require("worker", "server", "worker")
    from app.lifeline import end_with_parent
    from app.logs import configure_logs
    from app.process import hide
    from app.settings import Settings
    from workers.celery_app import run_worker

    hide()
    settings = Settings().completed()
    configure_logs()
    if lifeline is not None:
        end_with_parent(lifeline, grace_seconds=ORPHAN_GRACE_SECONDS)
    run_worker(settings)


def migrate() -> None:
    """Bring the schema of MODELPRESS_DATABASE_URL to the newest migration."""
    require("migrate", "server")
    from app.errors import IncompleteSettings
    from app.serve import migrate as bring_to_head
    from app.settings import Settings

    database_url = Settings().database_url
    if database_url is None:
        raise IncompleteSettings(
            "Set MODELPRESS_DATABASE_URL. The embedded database is migrated by `modelpress serve`."
        )
    bring_to_head(database_url)
    STDOUT.print("The database is at the newest migration.")


def team(
    name: Annotated[str, typer.Argument(help="The team; it is made if there is none of this name.")],
    scopes: Annotated[list[Scope] | None, typer.Option("--key", help="Make a key with this scope. Repeatable.")] = None,
    days: Annotated[int | None, typer.Option(help="Days after which the key expires.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="Jobs of the team that may wait.")] = None,
    max_running: Annotated[int | None, typer.Option(min=0, help="Jobs that are computed at a time.")] = None,
    max_stored_bytes: Annotated[int | None, typer.Option(min=0, help="Bytes of finished files.")] = None,
) -> None:
    """Make a key for a team, or set the team's limits, with nothing but MODELPRESS_DATABASE_URL.

    Without --key, the limits are set; a limit that is left out is lifted.
    """
    require("team", "server")
    from app.db import make_engine, make_sessions
    from app.errors import IncompleteSettings
    from app.keys.setup import issue_key, set_limits
    from app.settings import Settings

    database_url = Settings().database_url
    if database_url is None:
        raise IncompleteSettings("Set MODELPRESS_DATABASE_URL. The embedded database has the team 'default' alone.")
    engine = make_engine(database_url)
    try:
        if scopes:
            issued = issue_key(
                make_sessions(engine),
                name,
                KeyRequest(name="made by the operator", scopes=frozenset(scopes), days=days),
            )
            STDERR.print("The key is shown this once:")
            STDOUT.print(issued.token, markup=False)
        else:
            set_limits(make_sessions(engine), name, max_queued, max_running, max_stored_bytes)
    finally:
        engine.dispose()


def extras_for(settings: "Settings") -> list[str]:
    """Return the extras that running the whole service on this machine requires."""
    embedded = settings.database_url is None or settings.redis_url is None
    return ["server", "worker", *(["embedded"] if embedded else [])]
