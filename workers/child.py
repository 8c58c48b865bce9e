"""A child process that does one piece of work for the supervisor.

It runs in a session of its own, so that it can be stopped together with everything it started; what has left that
session is ended by `workers.orphans`. It is given its request as one line on its standard input, which stays open: when
the supervisor dies the input ends and the child exits. It reports in JSON lines on its standard output. What it writes
to its standard error is logged and its tail kept.
"""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from app.logs import in_this_context
from workers.cage import Cage
from workers.orphans import BROOD

log = logging.getLogger(__name__)

TAIL_LINES = 50
MOST_WAITING = 1000
"""Reports that wait to be read. A child that sends more waits, too, once its pipe is full."""
LONGEST_LINE = 4 << 20
"""Characters of a report; what is longer is no report, and is not held in memory."""
LOOK_SECONDS = 0.2
LINGER_SECONDS = 10.0
"""How long the last reports of a process that has ended are waited for: what it has started may hold its output."""
END_SECONDS = 30.0
"""How long a process may take to end once it has closed its output, or was killed."""
INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "SSL_CERT_FILE",
    "HF_DATASETS_CACHE",
)
ROOMY = {"THP_MEM_ALLOC_ENABLE": "1"}
"""For a child that need not spare memory: torch asks for huge pages, so that the large tensors of a training, which are
mapped anew at each step, cost a fault for each 2 MiB and not for each 4 KiB. A fifth faster on two cores."""

SPARING = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""For a child that has to spare memory: what is larger goes back to the system as soon as it is freed. Left alone,
glibc raises its threshold to 32 MiB and keeps what is smaller: 400 MB more at the peak on a model of 2 GB. The price
is a fifth of the speed on a small model, whose tensors are mapped and zeroed anew each time."""

ROOT = Path(__file__).resolve().parent.parent


class Child:
    def __init__(
        self,
        module: str,
        request: str,
        home: Path,
        environment: Mapping[str, str],
        heard: Callable[[str], None] | None = None,
        cage: Cage | None = None,
    ) -> None:
        """Start `python -m module`, in the cage if one is given.

        Args:
            request: one line, written to the child's standard input.
            home: a directory that the child may write to; its HOME and TMPDIR.
            environment: what the child gets besides the few harmless variables in INHERITED.
            heard: told each line that the child writes to its standard error.
            cage: what the child may use; None: all that the worker may.
        """
        home.mkdir(parents=True, exist_ok=True)
        self.process = BROOD.start(
            lambda: subprocess.Popen(
                replace(cage, listable=(str(ROOT),)).command(module) if cage else [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=child_environment(home, environment),
                cwd=home,
            )
        )
        self.heard = heard
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self.unheard = threading.Event()
        self.seen_ended: float | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        stdin, stdout, stderr = self.pipes()
        self.readers = [
            threading.Thread(target=in_this_context(self.read_events), args=(stdout,), daemon=True),
            threading.Thread(target=in_this_context(self.read_log), args=(stderr, module), daemon=True),
        ]
        # A thread, because a child that hangs before it reads would hold the writer, once the pipe is full.
        writer = threading.Thread(
            target=in_this_context(self.write_request), args=(stdin, request, module), daemon=True
        )
        for thread in (*self.readers, writer):
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(grace_seconds=0)

    def pipes(self) -> tuple[IO[str], IO[str], IO[str]]:
        process = self.process
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise RuntimeError("the child was started without pipes")
        return process.stdin, process.stdout, process.stderr

    def write_request(self, stdin: IO[str], request: str, module: str) -> None:
        try:
            stdin.write(request + "\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: closed by `stop` meanwhile
            log.warning("child_died_at_start", extra={"module_name": module})

    def read_events(self, stdout: IO[str]) -> None:
        with stdout:
            for line in bounded_lines(stdout):
                event = parsed(line)
                if event is None:
                    log.warning("child_said_no_json", extra={"line": line[:200]})
                else:
                    self.put(event)
        self.put(None)

    def put(self, event: dict[str, Any] | None) -> None:
        """Queue a report once there is room for it; drop it where nobody reads any more."""
        while not self.unheard.is_set():
            with suppress(queue.Full):
                self.events.put(event, timeout=LOOK_SECONDS)
                return

    def read_log(self, stderr: IO[str], module: str) -> None:
        with stderr:
            for line in bounded_lines(stderr):
                self.tail.append(line.rstrip())
                log.info("child_log", extra={"module_name": module, "line": line.rstrip()[:1000]})
                if self.heard is not None:
                    self.heard(line.rstrip()[:1000])

    def next_event(self, timeout_seconds: float) -> dict[str, Any]:
        """Return the next report.

        Raises:
            queue.Empty: none came within the time.
            EOFError: the child has closed its output, or has ended; it will report no more.
        """
        try:
            event = self.events.get(timeout=timeout_seconds)
        except queue.Empty:
            if self.ended_long_ago():
                raise EOFError from None
            raise
        if event is None:
            raise EOFError
        return event

    def ended_long_ago(self) -> bool:
        """Return whether this was asked LINGER_SECONDS ago, too, and the child had ended by then."""
        if self.process.poll() is None:
            return False
        self.seen_ended = self.seen_ended or time.monotonic()
        return time.monotonic() - self.seen_ended >= LINGER_SECONDS

    def wait(self) -> int:
        """Wait for the end of a child that has closed its output, and return its exit status.

        One that does not end in time is killed. The status is negative when a signal ended the child.

        Raises:
            subprocess.TimeoutExpired: not even SIGKILL ends it, as where its disk does not answer.
        """
        try:
            status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("child_does_not_end", extra={"child": self.process.pid})
            self.signal(signal.SIGKILL)
            status = self.process.wait(END_SECONDS)
        self.signal(signal.SIGKILL)  # to what it has left behind, which may hold its output
        BROOD.ended(self.process.pid)
        for reader in self.readers:
            reader.join(timeout=5)
        return status

    def stop(self, grace_seconds: float) -> int:
        """End the child and everything in its session: politely, then for certain. Its reports are read no more."""
        self.unheard.set()
        if self.process.poll() is None and grace_seconds > 0:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                log.warning("child_ignores_sigterm", extra={"child": self.process.pid})
        self.signal(signal.SIGKILL)
        status = self.wait()
        stdin = self.process.stdin
        if stdin is not None:
            with suppress(OSError):  # a request that was never read
                stdin.close()
        return status

    def signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return


def parsed(line: str) -> dict[str, Any] | None:
    """Return the report in a line; None where it is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def bounded_lines(stream: IO[str]) -> Iterator[str]:
    """Yield the lines of a stream; of one that is too long, its beginning."""
    whole = True
    while line := stream.readline(LONGEST_LINE):
        if whole:
            yield line
        whole = line.endswith("\n")


def child_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Built from an allow-list: no database, broker or hub secret can slip through."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        # Of lm-eval: else it forks for standard errors, which threads of torch may not survive.
        "DISABLE_MULTIPROC": "1",
    }
    return environment | dict(extra)
