"""What is committed of bench/: experiments, results, and what is rendered of them."""

import pytest

from bench.chaos.record import RESULTS as SOAKS
from bench.kinds import read_experiment
from bench.render import RESULTS, experiment_files, pictures, results_page
from bench.result import outdated, read_result, result_path

EXPERIMENTS = experiment_files()
NAMES = [path.stem for path in EXPERIMENTS]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_an_experiment_parses_and_names_itself(path):
    experiment = read_experiment(path)
    assert experiment.title and experiment.about.strip()


def test_no_two_experiments_share_a_heading():
    titles = [read_experiment(path).title for path in EXPERIMENTS]
    assert len(set(titles)) == len(titles)


def test_every_result_belongs_to_an_experiment_or_is_that_of_the_soak():
    stored = {path.name for path in result_path(EXPERIMENTS[0]).parent.iterdir()}
    assert stored - {SOAKS.name} <= {result_path(path).name for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_a_result_is_that_of_the_experiment_as_it_is_now(path):
    experiment = read_experiment(path)
    result = read_result(result_path(path), experiment)
    assert result.experiment == path.stem
    assert not outdated(result, experiment), "measure these cases again, or take their rows out"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_no_case_has_two_rows(path):
    result = read_result(result_path(path), read_experiment(path))
    cases = [row.case for run in result.runs for row in run.rows]
    assert len(set(cases)) == len(cases)


def test_the_page_of_results_is_rendered_from_the_files():
    assert RESULTS.read_text(encoding="utf-8") == results_page(), "run `make results`"


@pytest.mark.parametrize("path, picture", list(pictures()), ids=lambda value: getattr(value, "name", ""))
def test_a_picture_is_rendered_from_the_files(path, picture):
    assert path.read_bytes() == picture, "run `make results`"
