"""A small job for each test of the stages."""

from pathlib import Path

import pytest

from tests.support.jobs import small_job
from workers.messages import Assignment


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    return small_job(tmp_path)
