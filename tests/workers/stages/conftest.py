"""A small job, walked through its stages in this process."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.contract.recipe import Recipe
from tests.support.models import write_text, write_tiny_model
from workers.messages import Assignment, DoneReport
from workers.runner import walk


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    return small_job(tmp_path)


def small_job(directory: Path, *, blocks: int = 3, **sections: Any) -> Assignment:
    """`sections` of the recipe stand before those that are here."""
    recipe = {
        "model": "local:model",
        "target_ratio": 1.2,
        "calibration": {"datasets": ["local:a.txt"], "sequences": 4, "length": 16},
        "evaluation": {"datasets": ["local:b.txt"], "window": 16, "max_tokens": 64},
    }
    texts = {
        f"local:{name}": write_text(directory / name, 600, offset) for name, offset in (("a.txt", 0), ("b.txt", 1))
    }
    return Assignment(
        job_id="job",
        attempt=1,
        recipe=Recipe.model_validate(recipe | sections),
        model_path=write_tiny_model(directory / "model", blocks=blocks),
        texts=texts,
        work_dir=directory / "work",
        device="cpu",
        threads=1,
        memory_bytes=None,
    )


def last_report(assignment: Assignment) -> BaseModel:
    reports: list[BaseModel] = []
    walk(assignment, reports.append)
    return reports[-1]


def done(assignment: Assignment) -> DoneReport:
    report = last_report(assignment)
    assert isinstance(report, DoneReport), report
    return report
