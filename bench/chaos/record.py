"""What a soak has found, as data: bench/results/chaos.json holds the last run of each seed."""

import datetime
from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import Field

from bench.chaos.history import History
from bench.experiment import Strict, Table
from bench.machine import Machine, commit, dirty, this_machine

RESULTS = Path(__file__).parents[1] / "results" / "chaos.json"


class Soak(Strict):
    """One run."""

    seed: int
    minutes: float = Field(description="for how long faults happened")
    date: datetime.date
    commit: str
    dirty: bool
    machine: Machine
    faults: dict[str, int] = Field(description="how often each fault was done")
    jobs: dict[str, int] = Field(description="accepted jobs, by how they ended")
    attempts: int
    moves: int = Field(description="recorded changes of a job's state or attempt")
    requests: dict[str, int] = Field(description="answers by status, and connections that broke by their error")
    downloads: int
    violations: tuple[str, ...]


class Soaks(Strict):
    """The last run of each seed."""

    runs: tuple[Soak, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what a file holds; nothing where there is none."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Write the runs, indented."""
        path.write_text(f"{self.model_dump_json(indent=1)}\n", encoding="utf-8")


def table_of(soaks: Soaks) -> Table:
    """Return a row for each run."""
    header = (
        "seed", "minutes", "faults", "jobs", "succeeded", "failed", "cancelled", "attempts", "moves", "requests",
        "downloads", "violations", "run",
    )  # fmt: skip
    return Table(header, tuple(cells_of(run) for run in soaks.runs))


def cells_of(run: Soak) -> tuple[str, ...]:
    """Return what a table shows of a run."""
    ends = (run.jobs.get(state, 0) for state in ("succeeded", "failed", "cancelled"))
    counts = (
        sum(run.faults.values()), sum(run.jobs.values()), *ends, run.attempts, run.moves, sum(run.requests.values()),
        run.downloads, len(run.violations),
    )  # fmt: skip
    where = f"{run.date}, commit {run.commit}{' with changes' if run.dirty else ''}"
    return (str(run.seed), f"{run.minutes:g}", *(f"{count:,}" for count in counts), where)


def keep(soak: Soak, path: Path = RESULTS) -> None:
    """Put a run in the place of an earlier one with the same seed."""
    others = [run for run in Soaks.read(path).runs if run.seed != soak.seed]
    Soaks(runs=tuple(sorted((*others, soak), key=lambda run: run.seed))).write(path)


def soak_of(seed: int, minutes: float, history: History, faults: dict[str, int], found: list[str]) -> Soak:
    """Return the record of a run on this machine."""
    return Soak(
        seed=seed,
        minutes=minutes,
        date=datetime.datetime.now(datetime.UTC).date(),
        commit=commit(),
        dirty=dirty(),
        machine=this_machine(),
        faults=dict(sorted(faults.items())),
        jobs=dict(sorted(Counter(job.state for job in history.ended).items())),
        attempts=sum(job.attempt for job in history.ended),
        moves=len(history.moves),
        requests=dict(sorted(history.answered.items())),
        downloads=history.downloads,
        violations=tuple(found),
    )
