"""A directory of files to publish."""

from pathlib import Path

import pytest

from tests.support.artifacts import write_files_of_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_files_of_package(tmp_path / "package")
