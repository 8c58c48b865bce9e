"""How the runner keeps what was measured: `bench.__main__` and `bench.result`."""

import datetime
import json
import sys

import pytest

from bench import __main__ as runner
from bench.experiment import read_document
from bench.kinds import read_experiment
from bench.kinds.searches import Found, Searches
from bench.machine import Machine
from bench.result import Result, Run, outdated, read_result, result_path

EXPERIMENT = """
kind = "searches"
title = "Searches"
about = "Small ones."

[[cases]]
name = "first"
rows = 32
columns = 32
planted = true
terms = 1

[[cases]]
name = "second"
rows = 8
columns = 16
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "results").mkdir()
    path = tmp_path / "experiments" / "small.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(autouse=True)
def _known_tree(monkeypatch):
    monkeypatch.setattr(runner, "commit", lambda: "0123abc")
    monkeypatch.setattr(runner, "dirty", lambda: False)


def run(monkeypatch, path, *options):
    monkeypatch.setattr(sys, "argv", ["bench", str(path), *options])
    runner.main()
    return read_result(result_path(path), read_experiment(path))


def made_run(commit, *rows):
    return Run[Found](
        command="",
        date=datetime.date(2026, 1, 1),
        commit=commit,
        dirty=False,
        versions={},
        machine=Machine(cpu="some", cores=1, memory_bytes=1),
        rows=rows,
    )


def test_a_run_has_a_row_for_every_case_and_says_what_it_ran_on(monkeypatch, path):
    (found,) = run(monkeypatch, path).runs
    assert [row.case for row in found.rows] == ["first", "second"]
    assert (found.commit, found.dirty) == ("0123abc", False)
    assert {"python", "torch", "transformers"} <= found.versions.keys()
    assert found.machine.cores > 0 and found.machine.memory_bytes > 0


def test_a_planted_matrix_is_found(monkeypatch, path):
    (found,) = run(monkeypatch, path).runs
    assert found.rows[0].energy == pytest.approx(1.0, abs=0.02)


def test_cases_with_a_row_are_not_measured_again(monkeypatch, path):
    before = run(monkeypatch, path, "--only", "first")
    after = run(monkeypatch, path)
    assert after.runs[0] == before.runs[0]
    assert [row.case for row in after.runs[1].rows] == ["second"]


def test_a_case_that_is_measured_again_replaces_its_row(monkeypatch, path):
    run(monkeypatch, path)
    result = run(monkeypatch, path, "--again", "first")
    assert [[row.case for row in each.rows] for each in result.runs] == [["second"], ["first"]]


def test_a_case_whose_settings_changed_is_measured_again(monkeypatch, path):
    run(monkeypatch, path)
    path.write_text(EXPERIMENT.replace("columns = 16", "columns = 24"))
    result = run(monkeypatch, path)
    assert [[row.case for row in each.rows] for each in result.runs] == [["first"], ["second"]]
    assert result.cases["second"]["columns"] == 24


def test_a_setting_of_the_whole_experiment_outdates_every_row(path):
    experiment = Searches.model_validate(read_document(path))
    cases = {case.name: case.model_dump(mode="json") for case in experiment.cases}
    rows = (Found(case="first", energy=1.0, seconds=0.0),)
    result = Result[Found](
        experiment="small", settings=experiment.settings(), cases=cases, runs=(made_run("a", *rows),)
    )
    assert outdated(result, experiment) == set()
    assert outdated(result, experiment.model_copy(update={"seed": 1})) == {"first"}


def test_prose_does_not_outdate_a_row(monkeypatch, path):
    result = run(monkeypatch, path)
    path.write_text(EXPERIMENT.replace("Small ones.", "Others."))
    assert outdated(result, read_experiment(path)) == set()


def test_a_misspelt_setting_is_refused(path):
    path.write_text(EXPERIMENT.replace("planted", "plantd"))
    with pytest.raises(ValueError, match="plantd"):
        read_experiment(path)


def test_cases_of_one_name_are_refused(path):
    path.write_text(EXPERIMENT.replace("second", "first"))
    with pytest.raises(ValueError, match="a name of its own"):
        read_experiment(path)


def test_a_result_with_an_unknown_field_is_refused(monkeypatch, path):
    run(monkeypatch, path)
    stored = json.loads(result_path(path).read_text())
    stored["runs"][0]["rows"][0]["colour"] = "red"
    result_path(path).write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="colour"):
        read_result(result_path(path), read_experiment(path))
