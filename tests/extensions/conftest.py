"""A house of its own for each test that adds something to it."""

from pathlib import Path

import pytest

from tests.support.house import House, copy_house


@pytest.fixture
def house(tmp_path: Path) -> House:
    return copy_house(tmp_path)
