"""What every experiment has: a kind, a title, cases to measure, and a table for its rows.

A kind of experiment is a subclass of `Experiment` in `bench/kinds/`, listed in `bench/kinds/__init__.py`. A file in
`bench/experiments/` is one experiment of a kind: its fields, and a `[[cases]]` entry for each row of the table.
"""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Strict(BaseModel):
    """Unknown fields are refused: a misspelt setting must not be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Case(Strict):
    """One thing to measure."""

    name: str = Field(description="names the row in the table; unique within the experiment")


class Row(Strict):
    """The measurements of one case."""

    case: str = Field(description="name of the case that was measured")


CaseT = TypeVar("CaseT", bound=Case)
RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Place:
    """The directories of one run: `data` holds the texts, `scratch` is emptied afterwards."""

    data: Path
    scratch: Path


@dataclass(frozen=True)
class Table:
    """A table ready to print. `cells` has a row of texts for each row of the result."""

    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


class Experiment(Strict, ABC, Generic[CaseT, RowT]):
    """An experiment as its file states it.

    Attributes:
        kind: which subclass reads the file.
        title: the heading in bench/RESULTS.md.
        about: what the table's columns mean, in Markdown.
        order: sorts the sections of bench/RESULTS.md, smaller ones first.
        seed: seeds torch before each run.
        picture: the SVG to draw of the result, such as 'docs/quality.svg'.
    """

    row: ClassVar[type[Row]]

    kind: str
    title: str
    about: str
    order: int = 50
    seed: int = 0
    picture: str | None = None
    cases: tuple[CaseT, ...] = Field(min_length=1)

    @field_validator("cases")
    @classmethod
    def check_names(cls, cases: tuple[CaseT, ...]) -> tuple[CaseT, ...]:
        names = [case.name for case in cases]
        if len(set(names)) < len(names):
            raise ValueError("give each case a name of its own")
        return cases

    @abstractmethod
    def measure(self, cases: Sequence[CaseT], place: Place) -> Iterator[RowT]:
        """Measure some of the experiment's cases; yield each row as soon as it is known."""

    @abstractmethod
    def table(self, rows: Sequence[RowT]) -> Table:
        """Return the rows as a table, in the order given."""

    def only(self, names: Collection[str]) -> tuple[CaseT, ...]:
        """Return the cases of these names, in the experiment's order."""
        return tuple(case for case in self.cases if case.name in names)

    def settings(self) -> dict[str, Any]:
        """Return what decides the figures of every case: all fields but the cases and how they are shown."""
        return self.model_dump(mode="json", exclude={"title", "about", "order", "picture", "cases"})


def read_document(path: Path) -> dict[str, Any]:
    """Return the contents of an experiment's file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))
