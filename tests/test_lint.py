"""What `make lint` checks beside the imports, as tests: so it computes beside the others, and fails as they do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_nothing_is_found_by(command: str) -> None:
    program, *arguments = command.split()
    checked = subprocess.run([TOOLS / program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
