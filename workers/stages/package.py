"""Assemble the package that the client downloads: checkpoints, report, model cards and checksums.

The main checkpoint lies at the top of the package, every other format in a directory named after it.
"""

import os
import shutil
from pathlib import Path

from modelpress.spec.formats import MAIN
from workers.compression.formats.files import SUMS_FILE, write_sums
from workers.stages import names, write
from workers.stages.context import Context
from workers.stages.report import write_report
from workers.stages.stage import Stage

NAME = "package"


def run(context: Context, directory: Path) -> None:
    """Assemble the package in `directory`, linking the written checkpoints."""
    package = directory / NAME
    shutil.rmtree(package, ignore_errors=True)
    for form in write.written(context):
        link_all(write.directory_of(context, form.name), place_of(package, form.name))
    write_report(context, package)
    write_sums(package)


def link_all(source: Path, destination: Path) -> None:
    """Link every file of a checkpoint but its digests, at the same place below `destination`. A copy could be large."""
    for file in source.rglob("*"):
        if file.is_file() and file.name != SUMS_FILE:
            place = destination / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, place)


def package_dir(context: Context) -> Path:
    """Return the directory of the finished package."""
    return context.results[names.PACKAGE] / NAME


def place_of(package: Path, name: str) -> Path:
    """Return the directory within `package` that holds the checkpoint in the format `name`."""
    return package if name == MAIN else package / name


STAGE = Stage(names.PACKAGE, run)
