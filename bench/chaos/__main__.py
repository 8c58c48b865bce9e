"""Run the soak: `python -m bench.chaos --minutes 10 --seed 1`.

What was found is printed, and with --keep goes to bench/results/chaos.json. If a promise was violated, the exit status
is 1, and the whole history is in the directory that is printed.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from app.embedded.private import free_port
from app.jobs.verification import verify
from app.storage.registry import open_storage
from bench.chaos.clients import Client
from bench.chaos.faults import Faults
from bench.chaos.history import History, violations
from bench.chaos.inputs import prepare
from bench.chaos.record import keep, soak_of
from bench.chaos.setting import Setting, running, wait_until

CLIENTS = 4
MAX_ATTEMPTS = 6
END_SECONDS = 1200.0
"""For how long jobs may go on when the faults are over."""
TIDY_SECONDS = 60.0
MARKS = (".database", ".quarantine")


def main() -> int:
    """Run the soak that the command line describes, and return the exit status."""
    options = arguments()
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir=options.scratch))
    prepare(directory)
    history = History(max_attempts=MAX_ATTEMPTS)
    with running(directory, free_port(), MAX_ATTEMPTS) as setting:
        faults = Faults(setting, history, random.Random(options.seed))  # noqa: S311 - nothing secret
        disturb(setting, history, faults, options.minutes * 60, options.seed)
        look_back(setting, history)
    found = violations(history)
    soak = soak_of(options.seed, options.minutes, history, dict(faults.done), found)
    if options.keep:
        keep(soak)
    print(soak.model_dump_json(indent=1))
    if not found:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    (directory / "history.json").write_text(dumped(history))
    print(f"{len(found)} violations; history and logs are in {directory}", file=sys.stderr)
    return 1


def disturb(setting: Setting, history: History, faults: Faults, seconds: float, seed: int) -> None:
    """Let clients use the service while faults happen, then let the jobs end in peace."""
    lock = threading.Lock()
    clients = [Client(number, setting.url, history, lock, f"{seed}-{number}") for number in range(CLIENTS)]
    for client in clients:
        client.start()
    until = time.monotonic() + seconds
    pause = random.Random(f"{seed}-pauses")  # noqa: S311 - nothing secret
    while time.monotonic() < until:
        time.sleep(pause.uniform(1.0, 8.0))
        faults.one()
    faults.end()
    for client in clients:
        client.over.set()
    for client in clients:
        client.join(END_SECONDS)
    wait_until(lambda: setting.open_jobs() == 0, END_SECONDS)


def look_back(setting: Setting, history: History) -> None:
    """Read what the database has recorded, and see what is left on the disk and of processes."""
    if not wait_until(lambda: not remains(setting), TIDY_SECONDS):
        history.left.extend(remains(setting))
    wait_until(lambda: bool(setting.moves()), TIDY_SECONDS)
    history.moves, history.written, history.ended = setting.moves(), setting.written(), setting.ended()
    storage = open_storage(setting.settings.artifacts_url)
    history.damaged.extend(
        f"{damage.job_id}/{damage.name} {damage.what}" for damage in verify(setting.sessions, storage).damages
    )


def remains(setting: Setting) -> list[str]:
    """Return what nobody needs any more: work of ended jobs, files of superseded attempts, processes."""
    work, artifacts = setting.settings.work_dir, setting.settings.data_dir / "artifacts"
    results = {(job.job_id, str(job.attempt)) for job in setting.ended() if job.sha256 is not None}
    found = [f"work of {path.name}" for path in work.iterdir()] if work.exists() else []
    for job in artifacts.iterdir() if artifacts.exists() else ():
        if job.name not in MARKS:
            found += [f"files {job.name}/{path.name}" for path in job.iterdir() if (job.name, path.name) not in results]
    return found + [f"process {process.pid}" for process in setting.children()]


def dumped(history: History) -> str:
    """Return the history as JSON."""
    seen = {f"{client} {job_id}": states for (client, job_id), states in history.seen.items()}
    lists = {name: [vars(each) for each in getattr(history, name)] for name in ("moves", "written", "ended")}
    return json.dumps({**vars(history), **lists, "seen": seen, "cancelled": sorted(history.cancelled)}, default=str)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long faults happen")
    parser.add_argument("--seed", type=int, default=1, help="decides faults, jobs and what clients do")
    parser.add_argument("--keep", action="store_true", help="keep what was found in bench/results/chaos.json")
    parser.add_argument("--scratch", type=Path, help="where the service keeps its files")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
