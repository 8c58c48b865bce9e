"""What an experiment has measured, and what on: `bench/results/NAME.json`.

A result holds one or more runs. A case has its row in the last run that measured it; measuring it again moves the row
there. Git keeps what was there before.
"""

import datetime
from collections.abc import Collection
from pathlib import Path
from typing import Any, Generic, Self

from pydantic import Field

from bench.experiment import Case, Experiment, Row, RowT, Strict
from bench.machine import Machine


class Run(Strict, Generic[RowT]):
    """The rows that one command measured, on one commit and one machine."""

    command: str
    date: datetime.date
    commit: str = Field(description="of the tree that was measured; of the record itself where it was copied from one")
    dirty: bool | None = Field(description="whether the tree differed from the commit; null: not recorded")
    versions: dict[str, str] = Field(description="release of each library that decides the figures")
    machine: Machine
    recorded_from: str | None = Field(None, description="the older record that the rows were copied from")
    note: str | None = Field(None, description="what was unusual about the run")
    rows: tuple[RowT, ...]


class Result(Strict, Generic[RowT]):
    """Everything that is known of one experiment."""

    experiment: str
    settings: dict[str, Any] = Field(description="of the experiment when it was measured, see Experiment.settings")
    cases: dict[str, dict[str, Any]] = Field(description="the measured cases by name, as they were then")
    runs: tuple[Run[RowT], ...]

    def names(self) -> set[str]:
        """Return the names of the cases that have a row."""
        return {row.case for run in self.runs for row in run.rows}

    def without(self, names: Collection[str]) -> Self:
        """Return the result without the rows of these cases, and without runs that have no row left."""
        runs = (
            run.model_copy(update={"rows": tuple(row for row in run.rows if row.case not in names)})
            for run in self.runs
        )
        return self.model_copy(
            update={
                "runs": tuple(run for run in runs if run.rows),
                "cases": {name: case for name, case in self.cases.items() if name not in names},
            }
        )

    def with_run(self, run: Run[RowT], cases: Collection[Case]) -> Self:
        """Return the result with one more run, whose rows replace older ones of the same cases."""
        measured = {row.case for row in run.rows}
        kept = self.without(measured)
        added = {case.name: case.model_dump(mode="json") for case in cases if case.name in measured}
        return kept.model_copy(update={"runs": (*kept.runs, run), "cases": kept.cases | added})


def result_path(experiment: Path) -> Path:
    """Return where the result of an experiment's file lies."""
    return experiment.parent.parent / "results" / f"{experiment.stem}.json"


def command_of(experiment: Path) -> str:
    """Return the command that measures an experiment's file; DIRECTORY is where the texts lie."""
    return f"python -m bench bench/experiments/{experiment.name} --data DIRECTORY"


def read_result(path: Path, experiment: Experiment[Any, Any]) -> Result[Any]:
    """Return the stored result, or one without runs. Raises pydantic's ValidationError for a file of another form."""
    if not path.exists():
        return Result(experiment=path.stem, settings=experiment.settings(), cases={}, runs=())
    row: type[Row] = experiment.row
    return Result[row].model_validate_json(path.read_bytes())  # type: ignore[valid-type]  # a type chosen here


def write_result(path: Path, result: Result[Any]) -> None:
    """Write the result, indented, with a final newline."""
    text = result.model_dump_json(indent=1, exclude_defaults=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def outdated(result: Result[Any], experiment: Experiment[Any, Any]) -> set[str]:
    """Return the names of measured cases whose settings are no longer those of the experiment."""
    if result.settings != experiment.settings():
        return result.names()
    now = {case.name: case.model_dump(mode="json") for case in experiment.cases}
    return {name for name, case in result.cases.items() if now.get(name) != case}
