"""Run the whole service on one machine: embedded servers where no URLs are given, migrations, one API and one worker.

API and worker are processes that each lead a session of their own. So a Ctrl-C at the terminal reaches only this
process, which stops them in order: worker, API, servers. Embedded servers are started again when they end. If API or
worker end unexpectedly, everything stops with `ServiceFailed`, so that whatever supervises this process can restart the
whole. If this process is killed, its children end too (`app.lifeline`).
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import IO

from pydantic import SecretStr
from sqlalchemy.exc import ArgumentError, OperationalError

from app.db import make_engine, make_sessions, upgrade
from app.embedded import EmbeddedServerError, embedded_database, embedded_servers
from app.errors import NotMigrated
from app.jobs.installation import claim_files
from app.keys.setup import first_key
from app.lifeline import Lifeline
from app.settings import ServerSettings, Settings
from app.storage.registry import open_storage
from modelpress.client import Client
from modelpress.errors import ModelpressError

PROGRAM = (sys.executable, "-P", "-m", "modelpress.cli")
"""Without -P, Python would look for our packages in the caller's current directory first."""
START_SECONDS = 180.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2


class ServiceFailed(ModelpressError):
    """The service cannot start, or a part of it has ended unexpectedly."""

    code = "service_failed"
    title = "The service cannot run"


@dataclass(frozen=True)
class Child:
    """The process of the API or the worker; `log` is None if it writes to this process's stderr."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None

    def kill(self) -> None:
        """Kill the child's whole session at once."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, grace_seconds: float) -> None:
        """Ask the child to stop, and kill it if it has not ended after `grace_seconds`."""
        self.process.terminate()
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()


class Service:
    """A running service: its address, its processes, and the settings that they have."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_open = False
        self.first_key: str | None = None
        self.settings: ServerSettings | None = None
        self.children: list[Child] = []

    def check(self) -> None:
        """Check that API and worker are running.

        Raises:
            ServiceFailed: one of them has ended.
        """
        for child in self.children:
            status = child.process.poll()
            if status is not None:
                where = f" Its log is {child.log}." if child.log else ""
                raise ServiceFailed(f"The {child.name} ended unexpectedly with status {status}.{where}")

    def wait(self) -> None:
        """Block until API or worker ends.

        Raises:
            ServiceFailed: one of them has ended.
        """
        while True:
            self.check()
            time.sleep(POLL_SECONDS)

    def wait_until_ready(self) -> None:
        """Block until the API accepts jobs.

        Raises:
            ServiceFailed: a process has ended, or the API is not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        with Client(self.address) as client:
            while lack := client.readiness():
                self.check()
                if time.monotonic() > deadline:
                    raise ServiceFailed(f"The API was not ready after {START_SECONDS:.0f} s: {lack}")
                time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """Kill API and worker at once."""
        for child in self.children:
            child.kill()


@contextmanager
def running_service(settings: Settings, *, log_dir: Path | None = None) -> Iterator[Service]:
    """Run the whole service during a `with` block, which begins once the API accepts jobs.

    The first Ctrl-C or SIGTERM raises KeyboardInterrupt in the block, so that everything stops in order; the next one
    kills API and worker at once. API and worker write to files in `log_dir`, or to this process's stderr if it is None.

    Raises:
        ServiceFailed: a part of the service cannot start.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        service = Service(address_of(listener))
        stack.enter_context(interruptible(service))
        service.settings = complete = stack.enter_context(servers(settings))
        migrate(complete.database_url)
        claim(complete)
        service.is_open = settings.database_url is None and is_loopback(listener)
        if not service.is_open:
            service.first_key = make_first_key(complete)
        lifeline = Lifeline()
        stack.callback(lifeline.close)
        for name, socket_fd in (("api", listener.fileno()), ("worker", None)):
            options = ["--open"] if name == "api" and service.is_open else []
            child = start(name, complete, lifeline, socket_fd, log_dir, options)
            service.children.append(child)
            stack.callback(child.stop, settings.stop_grace_seconds + STOP_SECONDS)
        listener.close()
        service.wait_until_ready()
        yield service


@contextmanager
def servers(settings: Settings) -> Iterator[ServerSettings]:
    """Yield the settings with the URLs of a database and a broker, running embedded servers if necessary.

    Raises:
        ServiceFailed: an embedded server cannot start.
    """
    with ExitStack() as stack:
        try:
            complete = stack.enter_context(embedded_servers(settings))
        except EmbeddedServerError as error:
            raise ServiceFailed(str(error)) from error
        yield complete


@contextmanager
def database(settings: Settings) -> Iterator[SecretStr]:
    """Yield the URL of the settings' database, running the embedded one if necessary.

    Raises:
        ServiceFailed: it cannot start, as while a service runs it.
    """
    with ExitStack() as stack:
        try:
            url = stack.enter_context(embedded_database(settings))
        except EmbeddedServerError as error:
            raise ServiceFailed(str(error)) from error
        yield url


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ServiceFailed, with the way out, where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit it. asyncio sets it only where the socket was made with the number of the protocol, and
        # without it each answer but a connection's first waits 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceFailed(
                f"Port {port} on {host} is taken. Stop what listens there, or set MODELPRESS_PORT to another port "
                "(0 takes any free one)."
            ) from error
        raise ServiceFailed(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Set MODELPRESS_HOST and MODELPRESS_PORT."
        ) from error


def address_of(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine reaches the socket."""
    return ip_address(listener.getsockname()[0]).is_loopback


@contextmanager
def interruptible(service: Service) -> Iterator[None]:
    """Make the first Ctrl-C or SIGTERM raise KeyboardInterrupt in the block, and the next ones kill API and worker."""

    def force(signum: int, frame: FrameType | None) -> None:
        service.kill()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, force)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(
    name: str,
    settings: ServerSettings,
    lifeline: Lifeline,
    socket_fd: int | None,
    log_dir: Path | None,
    options: Sequence[str] = (),
) -> Child:
    """Start `modelpress NAME` with these options and return it.

    It gets its settings by environment, because every user of the machine can read arguments.
    """
    command = [*PROGRAM, name, "--lifeline", str(lifeline.reading_end), *options]
    descriptors = [lifeline.reading_end]
    if socket_fd is not None:
        command += ["--socket", str(socket_fd)]
        descriptors.append(socket_fd)
    with ExitStack() as stack:
        log = log_dir / f"{name}.log" if log_dir else None
        process = subprocess.Popen(
            command,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(open_log(log)) if log else None,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
            pass_fds=descriptors,
        )
    return Child(name, process, log)


def open_log(log: Path) -> IO[bytes]:
    """Open a log for appending, creating its directory if necessary."""
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("ab")


def environment(settings: ServerSettings) -> dict[str, str]:
    """Return the environment for a child: this process's, with every setting, and caches and scratch files in
    `data_dir`.
    """
    scratch = settings.data_dir / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    prefix = Settings.model_config["env_prefix"]
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return (
        os.environ
        | {f"{prefix}{name.upper()}": as_text(value) for name, value in values.items() if value is not None}
        | {"TMPDIR": str(scratch), "HF_HOME": str(settings.data_dir / "huggingface"), "PYTHONSAFEPATH": "1"}
    )


def as_text(value: object) -> str:
    """Return a setting's value as its environment variable holds it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return os.pathsep.join(str(part) for part in value)
    return str(value)


def migrate(database_url: SecretStr) -> None:
    """Bring the database's schema to the newest migration.

    Raises:
        ServiceFailed: the URL is malformed, or the database does not answer.
    """
    try:
        engine = make_engine(database_url)
    except ArgumentError as error:
        raise ServiceFailed("MODELPRESS_DATABASE_URL is not a URL such as postgresql://user@host/database.") from error
    try:
        upgrade(engine)
    except OperationalError as error:
        raise ServiceFailed(f"The database at MODELPRESS_DATABASE_URL does not answer: {error.orig}") from error
    finally:
        engine.dispose()


def claim(settings: ServerSettings) -> None:
    """Mark the data directory as that of the database. Raises ForeignDataDirectory where it is that of another one."""
    engine = make_engine(settings.database_url)
    try:
        claim_files(settings, make_sessions(engine), open_storage(settings.artifacts_url))
    finally:
        engine.dispose()


def claim_if_possible(settings: ServerSettings) -> None:
    """Do what `claim` does, unless the database is not ready: then the API answers 503 until it is."""
    with suppress(OperationalError, NotMigrated):
        claim(settings)


def make_first_key(settings: ServerSettings) -> str | None:
    """Return a key with every scope if the database has no key yet."""
    engine = make_engine(settings.database_url)
    try:
        issued = first_key(make_sessions(engine))
    finally:
        engine.dispose()
    return None if issued is None else issued.token
