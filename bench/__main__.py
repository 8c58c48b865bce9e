"""Run one experiment: measure the cases that have no row yet, and keep each row as soon as it is there.

    python -m bench bench/experiments/quality.toml --data DIRECTORY
    python -m bench bench/experiments/quality.toml --data DIRECTORY --again "low_rank at 1.3"

Rows go to bench/results/NAME.json; `make results` renders them. Cases whose settings have changed are measured again.
"""

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.experiment import Place
from bench.kinds import read_experiment
from bench.machine import commit, dirty, this_machine, versions
from bench.result import Run, command_of, outdated, read_result, result_path, write_result


def main() -> None:
    """Run the experiment that the command line names."""
    options = arguments()
    experiment = read_experiment(options.experiment)
    path = result_path(options.experiment)
    old = outdated(read_result(path, experiment), experiment)
    result = read_result(path, experiment).without({*old, *options.again})
    result = result.model_copy(update={"settings": experiment.settings()})
    wanted = set(options.only or (case.name for case in experiment.cases)) - result.names()
    cases = experiment.only(wanted)
    if not cases:
        print(f"every case of {options.experiment} has a row; name some with --again to measure them again")
        return
    run: Run[Any] = begun(options.experiment)
    torch.manual_seed(experiment.seed)
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="bench-") as scratch:
        for row in experiment.measure(cases, Place(options.data, Path(scratch))):
            print(row.model_dump_json(), flush=True)
            run = run.model_copy(update={"rows": (*run.rows, row)})
            write_result(path, result.with_run(run, cases))


def begun(path: Path) -> Run[Any]:
    """Return a run on this machine that has no rows yet."""
    return Run[Any](
        command=command_of(path),
        date=datetime.datetime.now(datetime.UTC).date(),
        commit=commit(),
        dirty=dirty(),
        versions=versions(),
        machine=this_machine(),
        rows=(),
    )


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="a file of bench/experiments")
    parser.add_argument("--data", type=Path, default=Path(), help="the directory with the texts")
    parser.add_argument("--scratch", type=Path, help="where models and work files go; not in memory")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="measure these cases alone")
    parser.add_argument("--again", nargs="+", metavar="CASE", default=[], help="measure these although they have a row")
    return parser.parse_args()


if __name__ == "__main__":
    main()
