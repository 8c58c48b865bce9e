"""How long PostgreSQL takes for the first page of a list of jobs, by filter, in a table with very many."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from sqlalchemy import Connection, Engine, text

from app.db import make_engine, upgrade
from app.embedded import embedded_database
from app.jobs.listing import JobFilter, select_jobs
from app.settings import Settings
from bench.experiment import Case, Experiment, Place, Row, Table
from modelpress.contract.job import State

OWNER = "default"
PAGE = 20
FILL_SECONDS = 3600.0
FILL = (
    """
    INSERT INTO jobs (id, owner, state, progress, attempt, attempts_left, run_after, rung_at, recipe, source,
        created_at, queued_at, error)
    SELECT 'job_' || i, :owner, (ARRAY['succeeded', 'failed', 'cancelled'])[1 + i % 3], 0, 1, 1, now(), now(),
        jsonb_build_object('model', CASE WHEN i = :rare THEN 'local:rare' ELSE 'local:m' || i % 50 END,
            'target_ratio', 1.3, 'device', null, 'priority', 0,
            'method', jsonb_build_object('name', (ARRAY['low_rank', 'width', 'fusion', 'auto'])[1 + i / 3 % 4]),
            'metadata', jsonb_build_object('team', 't' || i / 7 % 10, 'all', 'yes')),
        '{}', now() - i * interval '1 second', now(), CASE WHEN i % 3 = 1 THEN '{"code": "gone"}'::jsonb END
    FROM generate_series(1, :jobs) AS i
    """,
    """
    INSERT INTO job_metadata (job_id, key, owner, value, model, method, state, created_at)
    SELECT id, pair.key, owner, pair.value, model, method, state, created_at
    FROM jobs, jsonb_each_text(recipe -> 'metadata') AS pair
    """,
)
"""Makes jobs whose fields depend on each other, so that some combinations are rare where each part is frequent."""


class Asked(Case):
    """A filter; what is left out is not asked for."""

    state: State | None = None
    model: str | None = None
    method: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def filter(self) -> JobFilter:
        """Return the filter as the service has it."""
        return JobFilter(self.state, self.model, self.method, tuple(self.metadata.items()))


class Found(Row):
    """Row of a filter: the time that its first page took, and the indexes that served it."""

    jobs: int = Field(description="on the page")
    first_ms: float = Field(description="planning and execution the first time, after a restart of the server")
    again_ms: float = Field(description="the same, the median of five further times")
    index: str = Field(description="the indexes of the plan")


class Filters(Experiment[Asked, Found]):
    """First pages of jobs."""

    row: ClassVar[type[Row]] = Found

    kind: Literal["filters"]
    jobs: int = 1_000_000

    def measure(self, cases: Sequence[Asked], place: Place) -> Iterator[Found]:
        """Fill a table, start the server again, and ask for one page after another."""
        settings = Settings(data_dir=place.scratch / "service", database_url=None, redis_url=None)
        with embedded_database(settings) as url:
            engine = make_engine(url, patience_seconds=FILL_SECONDS)
            upgrade(engine)
            self._fill(engine)
            engine.dispose()
        with embedded_database(settings) as url:
            engine = make_engine(url)
            for case in cases:
                with engine.connect() as connection:
                    yield found(connection, case)
            engine.dispose()

    def _fill(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL synchronous_commit = off"))
            for statement in FILL:
                names = {"owner": OWNER, "jobs": self.jobs, "rare": self.jobs - 1000}
                connection.execute(text(statement), {name: names[name] for name in names if f":{name}" in statement})
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))

    def table(self, rows: Sequence[Found]) -> Table:
        """Return a row for each filter."""
        header = ("filter", "jobs on the page", "first, ms", "again, ms", "found by")
        cells = ((r.case, f"{r.jobs}", f"{r.first_ms:.1f}", f"{r.again_ms:.1f}", r.index) for r in rows)
        return Table(header, tuple(cells))


def found(connection: Connection, case: Asked) -> Found:
    """Return how long the server takes for the first page of a filter."""
    query = select_jobs(OWNER, case.filter, None, PAGE)
    literal = str(query.compile(connection, compile_kwargs={"literal_binds": True})).replace("%", "%%")
    plans = [explained(connection, literal) for _ in range(6)]
    times = [plan["Planning Time"] + plan["Execution Time"] for plan in plans]
    return Found(
        case=case.name,
        jobs=len(connection.execute(query).all()),
        first_ms=times[0],
        again_ms=statistics.median(times[1:]),
        index=", ".join(sorted(set(indexes(plans[0]["Plan"])))),
    )


def explained(connection: Connection, statement: str) -> dict[str, Any]:
    """Return what EXPLAIN ANALYZE says of a statement."""
    answer = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}").scalar_one()
    (plan,) = json.loads(answer) if isinstance(answer, str) else answer
    return dict(plan)


def indexes(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield the indexes that a plan uses, and tables that it reads whole."""
    if "Index Name" in node:
        yield node["Index Name"]
    elif node["Node Type"] == "Seq Scan":
        yield f"all of {node['Relation Name']}"
    for child in node.get("Plans", ()):
        yield from indexes(child)
