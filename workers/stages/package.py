"""Put together what the client downloads: the weights as they were measured, and the report on them."""

import os
import shutil
from pathlib import Path

from app.contract.job import Stage
from workers.compression.formats.checkpoint import SUMS_FILE, write_sums
from workers.compression.formats.dense import write_dense
from workers.compression.spec.config import original_config, read_config
from workers.stages import evaluate, quantise
from workers.stages.context import Context
from workers.stages.report import write_report

NAME = "package"
DENSE = "dense"


def run(context: Context, directory: Path) -> None:
    draft = context.results[Stage.EVALUATE] / evaluate.DRAFT
    package = directory / NAME
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir()
    for file in draft.iterdir():
        if file.name != SUMS_FILE:
            link(file, package / file.name)
    quantised = quantise.quantised_dir(context)
    if quantised is not None:
        (package / quantised.name).mkdir()
        for file in quantised.iterdir():
            link(file, package / quantised.name / file.name)
    dense = context.assignment.recipe.export.dense and has_factors(package)
    if dense:
        write_dense(package, package / DENSE)
    write_report(context, package, dense=DENSE if dense else None)
    write_sums(package)


def link(file: Path, name: Path) -> None:
    """Not a copy: a checkpoint can be large."""
    os.link(file, name)


def has_factors(package: Path) -> bool:
    return bool(original_config(read_config(package))[1])


def dense_dir(context: Context) -> Path | None:
    """Where the dense export lies; None where there is none."""
    directory = package_dir(context) / DENSE
    return directory if directory.is_dir() else None


def package_dir(context: Context) -> Path:
    return context.results[Stage.PACKAGE] / NAME
