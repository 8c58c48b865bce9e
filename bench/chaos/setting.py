"""The service of the soak: servers, one API and some workers, each started again when it ends."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import redis
from sqlalchemy import text

from app.db import Sessions, make_engine, make_sessions, upgrade
from app.embedded import embedded_servers
from app.serve import environment
from app.settings import ServerSettings, Settings
from bench.chaos.computing import KIND, PLAIN, WEIGHTS
from bench.chaos.history import Ended, Move, Written

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "bench.chaos.program"]
WORKERS = 2
START_SECONDS = 120.0
END_SECONDS = 60.0
RECORDER = """
CREATE TABLE chaos_moves (
    id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), job_id text NOT NULL,
    before text, after text NOT NULL, attempt_before integer, attempt integer NOT NULL
);
CREATE FUNCTION chaos_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos_moves (job_id, after, attempt) VALUES (NEW.id, NEW.state, NEW.attempt);
    ELSIF OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt THEN
        INSERT INTO chaos_moves (job_id, before, after, attempt_before, attempt)
        VALUES (NEW.id, OLD.state, NEW.state, OLD.attempt, NEW.attempt);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER chaos_record AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION chaos_record();
"""


class Keeper(threading.Thread):
    """Runs a program of the service, and starts it again when it ends."""

    def __init__(self, name: str, arguments: list[str], settings: ServerSettings, logs: Path) -> None:
        super().__init__(name=name, daemon=True)
        self.arguments, self.log = arguments, logs / f"{name}.log"
        self.environment = environment(settings) | {"PYTHONPATH": str(ROOT)}
        self.random = random.Random(name)  # noqa: S311 - nothing secret
        self.over = threading.Event()
        self.turn = threading.Lock()
        self.process = self.started()

    def started(self) -> subprocess.Popen[bytes]:
        """Start the program."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*PROGRAM, *self.arguments],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self) -> None:
        """Start the program again whenever it has ended, after a moment."""
        while not self.over.is_set():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
                self.over.wait(self.random.uniform(0.0, 1.5))
                with self.turn:
                    if not self.over.is_set():
                        self.process = self.started()

    def signal(self, number: signal.Signals) -> bool:
        """Send the program a signal; return whether it was there."""
        with self.turn:
            if self.process.poll() is not None:
                return False
            self.process.send_signal(number)
            return True

    def end(self) -> int | None:
        """End the program in order, and return its status; None where it had to be killed."""
        with self.turn:
            self.over.set()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None


class Setting:
    """The running service, and what the soak asks of its database and its machine."""

    def __init__(self, settings: ServerSettings, sessions: Sessions, keepers: list[Keeper]) -> None:
        self.settings, self.sessions, self.keepers = settings, sessions, keepers

    @property
    def url(self) -> str:
        """Return the address of the API."""
        return f"http://127.0.0.1:{self.settings.port}"

    def is_ready(self) -> bool:
        """Return whether the API accepts jobs."""
        return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == httpx2.codes.OK

    def processes(self) -> list[psutil.Process]:
        """Return all processes that this one has started, and what those have."""
        found: list[psutil.Process] = psutil.Process().children(recursive=True)
        return found

    def servers(self, name: str) -> list[psutil.Process]:
        """Return the processes of an embedded server."""
        return [process for process in self.processes() if name_of(process) == name]

    def children(self) -> list[psutil.Process]:
        """Return the processes that fetch or compute."""
        return [process for process in self.processes() if is_inside(process, self.settings.work_dir)]

    def flush(self) -> bool:
        """Empty the broker; return whether it answered."""
        url = self.settings.redis_url.get_secret_value().replace("redis+socket://", "unix://")
        try:
            with redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as broker:
                broker.flushall()
        except redis.RedisError:
            return False
        return True

    def moves(self) -> list[Move]:
        """Return every change of a job's state or attempt."""
        query = text("SELECT at, job_id, before, after, attempt_before, attempt FROM chaos_moves ORDER BY id")
        with self.sessions() as session:
            return [Move(*row) for row in session.execute(query)]

    def written(self) -> list[Written]:
        """Return every event of an attempt."""
        with self.sessions() as session:
            rows = session.execute(text("SELECT at, job_id, attempt FROM job_events WHERE attempt > 0 ORDER BY id"))
            return [Written(*row) for row in rows]

    def ended(self) -> list[Ended]:
        """Return every job as it stands now."""
        query = text(
            "SELECT jobs.id, coalesce(recipe -> 'metadata' ->> :kind, :plain), state, error ->> 'code', jobs.attempt,"
            " attempts_left, artifacts.sha256 FROM jobs LEFT JOIN artifacts ON job_id = jobs.id AND name = :weights"
            " ORDER BY created_at"
        )
        with self.sessions() as session:
            return [Ended(*row) for row in session.execute(query, {"kind": KIND, "plain": PLAIN, "weights": WEIGHTS})]

    def open_jobs(self) -> int:
        """Return how many jobs have not ended."""
        query = text("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running', 'cancelling')")
        with self.sessions() as session:
            return int(session.execute(query).scalar_one())


def name_of(process: psutil.Process) -> str:
    """Return the name of a process's program; "" where it has ended."""
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def is_inside(process: psutil.Process, directory: Path) -> bool:
    """Return whether a process runs in a directory or below it."""
    try:
        return Path(process.cwd()).is_relative_to(directory)
    except (psutil.Error, OSError):
        return False


@contextmanager
def running(directory: Path, port: int, max_attempts: int) -> Iterator[Setting]:
    """Yield the service, with models and texts of `directory`, and end it afterwards."""
    asked = Settings(
        data_dir=directory / "data",
        database_url=None,
        redis_url=None,
        storage_url=None,
        port=port,
        model_roots=(directory / "models",),
        data_roots=(directory / "texts",),
        hub_enabled=False,
        lease_seconds=5.0,
        sweep_seconds=0.5,
        retry_delay_seconds=0.1,
        ring_again_seconds=2.0,
        stop_grace_seconds=1.0,
        keep_work_seconds=0.0,
        max_attempts=max_attempts,
        threads=1,
    )
    logs = directory / "logs"
    logs.mkdir()
    with ExitStack() as stack:
        settings = stack.enter_context(embedded_servers(asked))
        engine = make_engine(settings.database_url)
        stack.callback(engine.dispose)
        upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text(RECORDER))
        keepers = []
        names = {"api": ["api", "--open"], **{f"worker-{number}": ["worker"] for number in range(WORKERS)}}
        for name, arguments in names.items():
            keeper = Keeper(name, arguments, settings, logs)
            stack.callback(keeper.end)
            keeper.start()
            keepers.append(keeper)
        setting = Setting(settings, make_sessions(engine), keepers)
        if not wait_until(setting.is_ready, START_SECONDS):
            raise RuntimeError(f"the API was not ready within {START_SECONDS:g} s; its log is in {logs}")
        yield setting


def wait_until(fact: Callable[[], bool], patience_seconds: float) -> bool:
    """Wait for a fact, asking again where the database is away; return whether it came true."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        with suppress(Exception):
            if fact():
                return True
        time.sleep(0.3)
    return False
