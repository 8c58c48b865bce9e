"""What a job says of the time that it needs, second by second, beside the time that it then took."""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from pydantic import Field

from app.serve import running_service
from app.settings import Settings
from bench.chaos.inputs import prepare
from bench.experiment import Case, Experiment, Place, Row, Strict, Table
from demo.models import bundled
from modelpress.client import Client
from modelpress.contract.job import Job, State
from modelpress.contract.recipe import Recipe

FACTOR = 1.5
FLOOR_SECONDS = 3.0
"""What is off by no more than this is right, whatever the factor: nobody plans with the seconds of a short stage."""
FIRST = "fetch"


class Posted(Case):
    """Jobs of one recipe, one after another."""

    recipe: dict[str, Any] = Field(description="the body of POST /jobs")
    jobs: int = 1
    look_seconds: float = 1.0


class Look(Strict):
    """The time left that a job gave at one moment, and the time that it then took, in seconds."""

    stage: str
    said: float | None
    left: float

    @property
    def is_right(self) -> bool:
        """Return whether it was within the factor, or within the floor."""
        if self.said is None:
            return False
        near = abs(self.said - self.left) <= FLOOR_SECONDS
        return near or (self.left / FACTOR <= self.said <= self.left * FACTOR)


class StageLooks(Strict):
    """The looks that fell into one stage."""

    looks: int
    silent: int = Field(description="looks at which no time was said")
    wrong: int = Field(description="looks at which the time was off by more than the factor and the floor")
    worst: float | None = Field(description="largest factor by which the time was off, beyond the floor")


class Told(Row):
    """All looks of a case after the first stage."""

    jobs: int
    seconds: tuple[float, ...] = Field(description="of each job, from its claim to its end")
    stages: dict[str, StageLooks]


class TimeLeft(Experiment[Posted, Told]):
    """The time that is said to be left."""

    row: ClassVar[type[Row]] = Told

    kind: Literal["time_left"]

    def measure(self, cases: Sequence[Posted], place: Place) -> Iterator[Told]:
        """Post the jobs of each case to a fresh service, which knows nothing of earlier ones."""
        for number, case in enumerate(cases):
            inputs = place.scratch / f"inputs-{number}"
            prepare(inputs)
            original = bundled().path
            assert original is not None, "the model that comes along is a file"
            shutil.copy(original, inputs / "models" / "model.gguf")
            settings = Settings(
                data_dir=place.scratch / f"service-{number}",
                database_url=None,
                redis_url=None,
                port=0,
                model_roots=(inputs / "models",),
                data_roots=(inputs / "texts",),
                hub_enabled=False,
            )
            with ExitStack() as stack:
                service = stack.enter_context(running_service(settings, log_dir=place.scratch / f"logs-{number}"))
                client = stack.enter_context(Client(service.address))
                watched = [watch(client, case) for _ in range(case.jobs)]
            yield told(case, watched)

    def table(self, rows: Sequence[Told]) -> Table:
        """Return a row for each stage of each case."""
        header = ("jobs", "stage", "looks", "without a time", "off by more", "worst factor")
        cells = (
            (
                row.case if stage == next(iter(row.stages)) else "",
                stage,
                f"{seen.looks}",
                f"{seen.silent}",
                f"{seen.wrong}",
                "" if seen.worst is None else f"{seen.worst:.2f}",
            )
            for row in rows
            for stage, seen in row.stages.items()
        )
        return Table(header, tuple(cells))


def watch(client: Client, case: Posted) -> tuple[float, list[Look]]:
    """Post a job and look at it until it ends; return the seconds that it took, and the looks."""
    job = client.submit(Recipe.model_validate(case.recipe))
    seen: list[tuple[float, Job]] = []
    while not job.state.has_ended:
        time.sleep(case.look_seconds)
        job = client.get(job.id)
        seen.append((time.time(), job))
    assert job.state is State.SUCCEEDED, job.error
    started, ended = job.timestamps.running, job.timestamps.succeeded
    assert started is not None and ended is not None, "it has run and ended"
    looks = [
        Look(stage=each.stage, said=each.seconds_left, left=ended.timestamp() - at)
        for at, each in seen
        if each.stage is not None and not each.state.has_ended
    ]
    return (ended - started).total_seconds(), looks


def told(case: Posted, watched: Sequence[tuple[float, Sequence[Look]]]) -> Told:
    """Return the row of a case."""
    stages: defaultdict[str, list[Look]] = defaultdict(list)
    for _, looks in watched:
        for look in looks:
            if look.stage != FIRST:
                stages[look.stage].append(look)
    return Told(
        case=case.name,
        jobs=len(watched),
        seconds=tuple(seconds for seconds, _ in watched),
        stages=summed(stages),
    )


def summed(stages: Mapping[str, Sequence[Look]]) -> dict[str, StageLooks]:
    """Return what the looks of each stage come to."""
    return {
        stage: StageLooks(
            looks=len(looks),
            silent=sum(look.said is None for look in looks),
            wrong=sum(look.said is not None and not look.is_right for look in looks),
            worst=max((factor(look) for look in looks if look.said is not None and not is_near(look)), default=None),
        )
        for stage, looks in stages.items()
    }


def is_near(look: Look) -> bool:
    """Return whether the time that was said is off by no more than the floor."""
    return look.said is not None and abs(look.said - look.left) <= FLOOR_SECONDS


def factor(look: Look) -> float:
    """Return by which factor the time that was said is off; at least a second is left."""
    said, left = max(look.said or 0.0, 1.0), max(look.left, 1.0)
    return max(said / left, left / said)
