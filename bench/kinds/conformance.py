"""The API held to its OpenAPI document by schemathesis with all checks, as two teams; see bench/conformance."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from app.db import make_engine, make_sessions, upgrade
from app.embedded import embedded_servers
from app.lifeline import Lifeline
from app.serve import address_of, listen, start
from app.settings import Settings
from bench.chaos.inputs import prepare
from bench.conformance import run, teams
from bench.experiment import Case, Experiment, Row, Table
from bench.experiment import Place as Directories
from modelpress.client import Client

STOP_SECONDS = 10.0


class Asking(Case):
    """The team that sends the requests, and the phases of schemathesis."""

    team: Literal["search", "ads"]
    phases: str = run.PHASES


class Held(Row):
    """Row of a run: how much was sent, and the faults that were found."""

    operations: int
    requests: int
    phases: dict[str, int] = Field(description="requests by the phase of schemathesis")
    statuses: dict[str, int] = Field(description="answers by status")
    foreign: int = Field(description="requests for a thing of another team; each was refused")
    own: int = Field(description="requests for a thing of the own team that were granted")
    faults: tuple[str, ...] = Field(description="what schemathesis reports; empty: nothing")
    changed: tuple[str, ...] = Field(description="tables in which rows of a team changed that sent nothing")


class Conformance(Experiment[Asking, Held]):
    """The API and its document."""

    row: ClassVar[type[Row]] = Held

    kind: Literal["conformance"]
    examples: int = 300

    def measure(self, cases: Sequence[Asking], place: Directories) -> Iterator[Held]:
        """Run schemathesis once for each case, each with a service of its own."""
        for case in cases:
            scratch = place.scratch / case.team
            scratch.mkdir()
            with service(scratch) as found:
                outcome = run.hold(found, self.examples, asking=case.team, phases=case.phases, seed=self.seed)
            print(outcome.output[-20_000:])
            yield held(case, outcome)

    def table(self, rows: Sequence[Held]) -> Table:
        """Return a row for each case."""
        header = ("as", "operations", "requests", "answers", "for another team's thing", "faults", "changed elsewhere")
        return Table(header, tuple(map(cells, rows)))


def cells(row: Held) -> tuple[str, ...]:
    """Return the texts of a row."""
    kinds = {kind: sum(n for status, n in row.statuses.items() if status[0] == kind) for kind in "2345"}
    return (
        row.case,
        f"{row.operations}",
        f"{row.requests:,}",
        ", ".join(f"{kind}xx: {count:,}" for kind, count in kinds.items()),
        f"{row.foreign:,}, all refused",
        "; ".join(row.faults) or "none",
        ", ".join(row.changed) or "nothing",
    )


def held(case: Asking, outcome: run.Outcome) -> Held:
    """Return the row of an outcome."""
    statuses: dict[str, int] = {}
    for answers in outcome.counts.operations.values():
        for status, times in answers.items():
            statuses[status] = statuses.get(status, 0) + times
    return Held(
        case=case.name,
        operations=len(outcome.counts.operations),
        requests=sum(statuses.values()),
        phases=outcome.counts.phases,
        statuses=dict(sorted(statuses.items())),
        foreign=outcome.counts.foreign,
        own=outcome.counts.own,
        faults=outcome.faults,
        changed=tuple(outcome.changed),
    )


@contextmanager
def service(scratch: Path) -> Iterator[teams.Place]:
    """Run servers and an API that asks for keys, without a worker, and yield where they are."""
    prepare(scratch / "inputs")
    settings = Settings(
        data_dir=scratch / "data",
        database_url=None,
        redis_url=None,
        model_roots=(scratch / "inputs" / "models",),
        data_roots=(scratch / "inputs" / "texts",),
        hub_enabled=False,
        max_queued=1_000_000,
        requests_per_minute=1_000_000_000,
    )
    with embedded_servers(settings) as complete, listen("127.0.0.1", 0) as listener:
        engine = make_engine(complete.database_url)
        upgrade(engine)
        lifeline = Lifeline()
        child = start("api", complete, lifeline, listener.fileno(), scratch / "logs")
        try:
            address = address_of(listener)
            with Client(address) as client:
                while client.readiness():
                    assert child.process.poll() is None, "the API has ended"
            (scratch / "work").mkdir()
            yield teams.Place(address, complete, make_sessions(engine), scratch / "work")
        finally:
            child.stop(STOP_SECONDS)
            lifeline.close()
            engine.dispose()
