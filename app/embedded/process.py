"""Run a server as a child process, and know for certain when it has ended.

Each server inherits the descriptor of a locked file, so the lock is held exactly as long as any of its processes lives.
The lock tells a running server from a stale pid file, even if the pid has been reused, and it covers the server's own
children. Each server has a session of its own, so that Ctrl-C reaches only the owner, which stops the servers in order.
If the owner is killed, Linux signals the servers to stop; on other systems the next owner stops them. A server that
ends while its owner needs it is started again (`watched.py`).
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
from app.embedded.watched import watched

START_SECONDS = 180.0
STOP_SECONDS = 30.0
LEFT_SECONDS = 5.0
"""How long PostgreSQL's own children may take to end after it was killed."""
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Server:
    """A server and its private directory, which holds its lock and its log.

    Attributes:
        name: the server's name in messages.
        directory: holds the lock and the log.
        stop_signal: makes the server stop cleanly without waiting for its clients.
        account: command prefix that changes the user before the server starts.
    """

    name: str
    directory: Path
    stop_signal: signal.Signals
    account: tuple[str, ...] = ()

    @property
    def log_path(self) -> Path:
        """Return the path of the server's log."""
        return self.directory / "server.log"

    def stop_leftover(self) -> None:
        """Stop a server that a killed owner left running in this directory, and return when it has ended.

        Raises:
            EmbeddedServerError: it does not end.
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
            raise EmbeddedServerError(
                f"{self.name} of an earlier run does not stop; kill it. Its data is in {self.directory}."
            )
        finally:
            os.close(descriptor)

    @contextmanager
    def running(
        self,
        command: tuple[str, ...],
        answers: Callable[[], bool],
        configuration: str = "",
        stale: Path | None = None,
    ) -> Iterator[None]:
        """Start the server, wait until it answers, and stop it at the end of the context.

        Until then it is started again whenever it ends.

        Args:
            command: the server's command line.
            answers: returns whether the server accepts requests.
            configuration: text for the server's standard input.
            stale: a file of an earlier run that would keep the server from starting.

        Raises:
            EmbeddedServerError: the server does not start; the message has the last line of its log.
        """

        def start() -> subprocess.Popen[bytes]:
            return self._start(command, configuration, stale)

        process = start()
        try:
            if (
                not wait_until(lambda: answers() or process.poll() is not None, START_SECONDS)
                or process.poll() is not None
            ):
                raise EmbeddedServerError(f"{self.name} did not start: {self._last_log_line()} (log: {self.log_path})")
        except BaseException:  # whatever ends the wait, Ctrl-C included, leaves no server behind
            self._stop(process)
            raise
        with watched(self.name, process, start, self._stop):
            yield

    def _start(self, command: tuple[str, ...], configuration: str, stale: Path | None) -> subprocess.Popen[bytes]:
        descriptor = open_lock(self.directory / "server.lock")
        try:
            if not wait_until(partial(try_lock, descriptor), LEFT_SECONDS):
                raise EmbeddedServerError(f"{self.name} is already running in {self.directory}.")
            os.ftruncate(descriptor, 0)
            if stale is not None:
                stale.unlink(missing_ok=True)
            if self.log_path.exists():
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
            with self.log_path.open("wb") as log:
                process = subprocess.Popen(
                    (*self.account, *stopped_with_parent(self.stop_signal), *command),
                    cwd=self.directory,
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

    def _last_log_line(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "its log is empty"


def stopped_with_parent(stop_signal: signal.Signals) -> tuple[str, ...]:
    """Return a command prefix that makes Linux send the signal when the parent dies; empty without `setpriv`."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", stop_signal.name.removeprefix("SIG")) if setpriv else ()


def plain_environment() -> Mapping[str, str]:
    """Return the environment for a server, which contains none of this process's secrets."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def wait_until(fact: Callable[[], bool], seconds: float) -> bool:
    """Poll until `fact` holds, and return False if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
