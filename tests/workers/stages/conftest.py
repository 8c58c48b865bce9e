"""A small job for each test of the stages."""

from pathlib import Path

import pytest

from tests.support.jobs import Attempt, small_job
from workers.messages import Assignment


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    return small_job(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(job: Assignment) -> Attempt:
    """An attempt that runs through, of the module's own `job`."""
    return Attempt(job)
