"""A copy of the packages to which one thing is added, as a developer would add it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "modelpress", "workers", "migrations", "bench", "demo", "docs", "tests")


@dataclass(frozen=True)
class House:
    """A copy of the packages, in which files and lines are added."""

    root: Path

    def add_file(self, name: str, text: str) -> None:
        """Write a file that was not there."""
        path = self.root / name
        assert not path.exists()
        path.write_text(text, encoding="utf-8")

    def add_line(self, name: str, before: str, line: str) -> None:
        """Insert a line before the only one that reads `before`, indented as that one is."""
        path = self.root / name
        lines = path.read_text(encoding="utf-8").splitlines()
        (place,) = (number for number, text in enumerate(lines) if text.strip() == before)
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        path.write_text("\n".join([*lines[:place], indent + line, *lines[place:]]) + "\n", encoding="utf-8")

    def run(self, *arguments: str) -> str:
        """Return what a Python of its own prints, which imports the copy and nothing else of ours."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def copy_house(directory: Path) -> House:
    """Copy the packages and what configures pytest into `directory`."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package)
    shutil.copyfile(ROOT / "pyproject.toml", directory / "pyproject.toml")
    return House(directory)
