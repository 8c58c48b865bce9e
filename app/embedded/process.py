"""Running one server as a child process, and being sure of its end.

Each server inherits a locked file, so the lock is held exactly as long as any of its processes lives. That tells a
living server from a stale pid file, also when the pid has gone to another process since, and it makes "stopped" a fact
that covers the server's own children. Servers have a session of their own, so that Ctrl-C reaches only their owner,
who stops them in order. When the owner is killed, Linux tells them to stop; elsewhere the next owner does.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.embedded.errors import EmbeddedServerError
from app.embedded.locks import open_lock, read_pid, try_lock, write_pid

START_SECONDS = 180.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Server:
    """A server and its private directory, which holds its lock and its log.

    Attributes:
        stop_signal: asks it to stop, cleanly and without waiting for its clients.
        account: a command prefix that changes the user before the server starts.
    """

    name: str
    directory: Path
    stop_signal: signal.Signals
    account: tuple[str, ...] = ()

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    def stop_leftover(self) -> None:
        """Stops what an owner that was killed left running on this directory, and returns when it is gone.

        Raises:
            EmbeddedServerError: it does not go.
        """
        descriptor = open_lock(self.directory / "server.lock")
        try:
            if try_lock(descriptor):
                return
            for request in (self.stop_signal, signal.SIGKILL):
                if pid := read_pid(descriptor):
                    with suppress(ProcessLookupError):
                        os.kill(pid, request)
                if wait_until(partial(try_lock, descriptor), STOP_SECONDS):
                    return
            raise EmbeddedServerError(f"{self.name} of an earlier run does not stop; its data is in {self.directory}.")
        finally:
            os.close(descriptor)

    @contextmanager
    def running(
        self, command: tuple[str, ...], workdir: Path, answers: Callable[[], bool], configuration: str = ""
    ) -> Iterator[None]:
        """Starts the server, waits until it answers, and stops it at the end.

        Args:
            workdir: its working directory.
            answers: whether it serves clients by now.
            configuration: what it reads from its standard input.
        """
        process = self._start((*self.account, *stopped_with_parent(self.stop_signal), *command), workdir, configuration)
        try:
            if (
                not wait_until(lambda: answers() or process.poll() is not None, START_SECONDS)
                or process.poll() is not None
            ):
                raise EmbeddedServerError(f"{self.name} did not start: {self._last_words()} (log: {self.log_path})")
            yield
        finally:
            self._stop(process)

    def _start(self, command: tuple[str, ...], workdir: Path, configuration: str) -> subprocess.Popen[bytes]:
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        descriptor = open_lock(self.directory / "server.lock")
        try:
            if not try_lock(descriptor):
                raise EmbeddedServerError(f"{self.name} runs in {self.directory} already.")
            os.ftruncate(descriptor, 0)
            with self.log_path.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    cwd=workdir,
                    env=plain_environment(),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(descriptor,),
                    start_new_session=True,
                )
            write_pid(descriptor, process.pid)
        finally:
            os.close(descriptor)
        if process.stdin is not None:
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(configuration.encode())
        return process

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(self.stop_signal)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.stop_leftover()

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"


def stopped_with_parent(stop_signal: signal.Signals) -> tuple[str, ...]:
    """A command prefix under which Linux sends the signal when the parent dies; empty where there is no such thing."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", stop_signal.name.removeprefix("SIG")) if setpriv else ()


def plain_environment() -> Mapping[str, str]:
    """What a server needs of the environment, and none of the secrets that are in ours."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def wait_until(fact: Callable[[], bool], seconds: float) -> bool:
    """Asks until `fact` holds; False when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
