"""Put together what the client downloads: the weights as they were measured, and the report on them."""

import os
from pathlib import Path

from app.contract.job import Stage
from workers.compression.package.checkpoint import SUMS_FILE, write_sums
from workers.stages import evaluate, quantise
from workers.stages.context import Context
from workers.stages.report import write_report

NAME = "package"


def run(context: Context, directory: Path) -> None:
    draft = context.results[Stage.EVALUATE] / evaluate.DRAFT
    package = directory / NAME
    package.mkdir(exist_ok=True)
    for file in draft.iterdir():
        if file.name != SUMS_FILE:
            link(file, package / file.name)
    quantised = quantise.quantised_dir(context)
    if quantised is not None:
        (package / quantised.name).mkdir(exist_ok=True)
        for file in quantised.iterdir():
            link(file, package / quantised.name / file.name)
    write_report(context, package)
    write_sums(package)


def link(file: Path, name: Path) -> None:
    """Not a copy: a checkpoint can be large. What is changed afterwards is written anew under its name."""
    name.unlink(missing_ok=True)
    os.link(file, name)


def package_dir(context: Context) -> Path:
    return context.results[Stage.PACKAGE] / NAME
