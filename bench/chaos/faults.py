"""The faults of the soak. Each is done to processes that the soak has started, and is over when its function returns
or is taken back by `Faults.end`."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from app.jobs.doorbell import Doorbell
from bench.chaos.history import History
from bench.chaos.setting import Keeper, Setting

SHORT_SECONDS, SERVER_SECONDS = 1.5, 6.0


@dataclass
class Faults:
    """Does faults at random, and counts them."""

    setting: Setting
    history: History
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)
    server_killed: float = 0.0

    def one(self) -> None:
        """Do one fault."""
        name = self.random.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
        if FAULTS[name][1](self):
            self.done[name] += 1

    def end(self) -> None:
        """Let everything go on that was frozen."""
        for process in self.setting.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def worker(self) -> Keeper:
        """Return one of the workers."""
        return self.random.choice([keeper for keeper in self.setting.keepers if keeper.name.startswith("worker")])

    def kill_worker(self) -> bool:
        """Kill a worker; its keeper starts another."""
        self.history.lethal += 1
        return self.worker().signal(signal.SIGKILL)

    def stop_worker(self) -> bool:
        """Ask a worker to end; its keeper starts another."""
        return self.worker().signal(signal.SIGTERM)

    def freeze_worker(self) -> bool:
        """Freeze a worker for longer than its lease, while the others go on."""
        self.history.lethal += 1
        return self.freeze_keeper(self.setting.settings.lease_seconds + 2.0)

    def pause_worker(self) -> bool:
        """Freeze a worker for less than its lease."""
        return self.freeze_keeper(SHORT_SECONDS)

    def freeze_keeper(self, seconds: float) -> bool:
        """Freeze a worker's process for a while."""
        worker = self.worker()
        frozen = worker.signal(signal.SIGSTOP)
        time.sleep(seconds)
        worker.signal(signal.SIGCONT)
        return frozen

    def kill_child(self) -> bool:
        """Kill a process that fetches or computes."""
        children = self.setting.children()
        if not children:
            return False
        self.history.lethal += 1
        with suppress(psutil.NoSuchProcess):
            self.random.choice(children).kill()
        return True

    def kill_api(self) -> bool:
        """Kill the API; its keeper starts another."""
        return self.setting.keepers[0].signal(signal.SIGKILL)

    def kill_database(self) -> bool:
        """Kill PostgreSQL, not too often, since it is started again after ever longer pauses."""
        return self.kill_server("postgres")

    def kill_broker(self) -> bool:
        """Kill Valkey, not too often."""
        return self.kill_server("valkey-server")

    def kill_server(self, name: str) -> bool:
        """Kill a server's first process."""
        if time.monotonic() - self.server_killed < 2 * SERVER_SECONDS:
            return False
        self.server_killed = time.monotonic()
        servers = self.setting.servers(name)
        first = min(servers, key=lambda process: process.create_time(), default=None)
        if first is None:
            return False
        with suppress(psutil.NoSuchProcess):
            first.kill()
        return True

    def silence_database(self) -> bool:
        """Freeze PostgreSQL with all of its processes."""
        return self.freeze_server("postgres")

    def silence_broker(self) -> bool:
        """Freeze Valkey."""
        return self.freeze_server("valkey-server")

    def freeze_server(self, name: str) -> bool:
        """Freeze a server for a while."""
        frozen = self.setting.servers(name)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in frozen:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            if number == signal.SIGSTOP:
                time.sleep(self.random.uniform(1.0, SERVER_SECONDS))
        return bool(frozen)

    def forget_messages(self) -> bool:
        """Empty the broker."""
        return self.setting.flush()

    def double_messages(self) -> bool:
        """Ring five times for one job."""
        if not self.history.answers:
            return False
        bell = Doorbell(self.setting.settings)
        job_id = self.random.choice(self.history.answers)[1]
        rung = [bell.ring(job_id) for _ in range(5)]
        return all(rung)


FAULTS: dict[str, tuple[int, Callable[[Faults], bool]]] = {
    "worker killed": (4, Faults.kill_worker),
    "worker told to end": (3, Faults.stop_worker),
    "worker frozen beyond its lease": (2, Faults.freeze_worker),
    "worker frozen for a moment": (2, Faults.pause_worker),
    "child killed": (4, Faults.kill_child),
    "API killed": (2, Faults.kill_api),
    "PostgreSQL killed": (2, Faults.kill_database),
    "PostgreSQL frozen": (2, Faults.silence_database),
    "Valkey killed": (2, Faults.kill_broker),
    "Valkey frozen": (2, Faults.silence_broker),
    "messages lost": (2, Faults.forget_messages),
    "messages doubled": (2, Faults.double_messages),
}
"""How often each fault is chosen, and what does it."""
