"""`modelpress serve` with real processes: it starts everything, and whatever happens to it, nothing is left."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import pytest

from app.settings import ServerSettings
from modelpress.client import Client, ProblemError
from tests.support.waiting import PATIENCE_SECONDS, wait_for

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches processes the way of Linux")


@dataclass
class Process:
    """Somebody else's process, by a handle that a reused pid cannot fool."""

    pid: int
    handle: int

    @classmethod
    def find(cls, pid: int) -> Self:
        return cls(pid, os.pidfd_open(pid))

    @property
    def command(self) -> str:
        return Path(f"/proc/{self.pid}/cmdline").read_text().replace("\0", " ")

    def children(self) -> list["Process"]:
        return [Process.find(child.pid) for child in psutil.Process(self.pid).children()]

    def child(self, word: str) -> "Process":
        return next(child for child in self.children() if word in child.command)

    def ends(self) -> bool:
        """Waits for the end of the process."""
        ready, _, _ = select.select([self.handle], [], [], PATIENCE_SECONDS)
        return bool(ready)


@dataclass
class Served:
    process: subprocess.Popen[str]
    data_dir: Path
    address: str = ""
    access: str = ""

    def wait_for_address(self) -> Self:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("Modelpress listens on "):
                self.address = line.split()[3].rstrip(";")
                self.access = self.process.stdout.readline()
                return self
        raise AssertionError((self.data_dir / "stderr").read_text())

    @property
    def top(self) -> Process:
        return Process.find(self.process.pid)

    def status(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """Children first: a stopped one does not notice the end of its parent."""
        if self.process.poll() is None:
            for child in self.top.children():
                os.kill(child.pid, signal.SIGKILL)
            self.process.kill()
        self.process.communicate()

    def wait_for_complaint(self, words: str) -> None:
        wait_for(lambda: words in self.complaints or self.process.poll() is not None)
        assert words in self.complaints, self.complaints

    @property
    def complaints(self) -> str:
        return (self.data_dir / "stderr").read_text()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts `modelpress serve`; what a test leaves running is killed."""
    started: list[Served] = []

    def serve(**settings: str) -> Served:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELPRESS_")}
        environment = kept | {"MODELPRESS_DATA_DIR": str(tmp_path), "MODELPRESS_PORT": "0"} | settings
        with (tmp_path / "stderr").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "modelpress.cli", "serve"],
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        started.append(Served(process, tmp_path))
        return started[-1]

    yield serve
    for served in started:
        served.kill()


@pytest.fixture
def given_servers(servers: ServerSettings) -> dict[str, str]:
    return {
        "MODELPRESS_DATABASE_URL": servers.database_url.get_secret_value(),
        "MODELPRESS_REDIS_URL": servers.redis_url.get_secret_value(),
    }


def test_an_interrupt_ends_everything_it_started_and_is_a_success(serve: Serve) -> None:
    served = serve().wait_for_address()
    with Client(served.address) as client:
        wait_for(lambda: client.readiness() is None)
        assert client.page().jobs == ()
    assert "asks for no keys" in served.access
    children = served.top.children()
    assert {name for name in ("api", "worker", "postgres", "valkey") for c in children if name in c.command} == {
        "api",
        "worker",
        "postgres",
        "valkey",
    }
    served.process.send_signal(signal.SIGINT)
    assert served.status() == 0
    assert all(child.ends() for child in children)
    assert "Traceback" not in served.complaints


def test_an_embedded_database_that_dies_is_started_again_and_told(serve: Serve) -> None:
    served = serve().wait_for_address()
    server = served.top.child("postgres")
    os.kill(server.pid, signal.SIGKILL)
    assert server.ends()
    served.wait_for_complaint("PostgreSQL has ended unasked with status -9; it is started again")
    with Client(served.address) as client:
        wait_for(lambda: client.readiness() is None)
    served.process.send_signal(signal.SIGINT)
    assert served.status() == 0


def test_servers_that_are_given_are_used_and_none_is_started(serve: Serve, given_servers: dict[str, str]) -> None:
    served = serve(**given_servers).wait_for_address()
    with Client(served.address, patience_seconds=0) as nobody, pytest.raises(ProblemError, match="asks for a key"):
        nobody.page()
    commands = [child.command for child in served.top.children()]
    assert len(commands) == 2
    secrets = given_servers.values()
    assert not [command for command in commands if any(secret in command for secret in secrets)]
    served.process.send_signal(signal.SIGTERM)
    assert served.status() == 0
    assert not (served.data_dir / "postgres").exists()


def test_a_killed_parent_takes_its_children_along(serve: Serve, given_servers: dict[str, str]) -> None:
    served = serve(**given_servers).wait_for_address()
    children = served.top.children()
    served.process.kill()
    assert children
    assert all(child.ends() for child in children)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_child_that_dies_ends_everything_and_is_named(serve: Serve, given_servers: dict[str, str], name: str) -> None:
    served = serve(**given_servers).wait_for_address()
    children = served.top.children()
    os.kill(served.top.child(f"modelpress.cli {name}").pid, signal.SIGKILL)
    assert served.status() == 1
    assert all(child.ends() for child in children)
    assert f"The {name} ended unexpectedly with status -9" in served.complaints


def test_a_second_interrupt_does_not_wait_for_a_child_that_hangs(serve: Serve, given_servers: dict[str, str]) -> None:
    served = serve(**given_servers, MODELPRESS_STOP_GRACE_SECONDS="600").wait_for_address()
    worker = served.top.child("modelpress.cli worker")
    os.kill(worker.pid, signal.SIGSTOP)
    served.process.send_signal(signal.SIGINT)
    served.wait_for_complaint("Stopping worker")
    served.process.send_signal(signal.SIGINT)
    assert worker.ends()
    assert served.status() == 0


def test_a_taken_port_is_told_before_anything_is_started(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        served = serve(MODELPRESS_PORT=str(port))
        assert served.status() == 1
    assert f"Port {port} on 127.0.0.1 is taken" in served.complaints
    assert not (served.data_dir / "postgres").exists()
