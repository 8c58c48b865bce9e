"""The checks for a GPU, rehearsed on the CPU: every step runs, and the results file says so, whatever dies."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import carry, checks
from bench.gpu.__main__ import AGAIN, NOTHING_DONE, main, supervise
from bench.gpu.results import Figures, Results
from bench.gpu.setting import REHEARSED, Setting
from bench.gpu.steps import STEPS, Step, run
from bench.gpu.steps import main as steps_main

LONG = 3000.0

WORKER = """
import os, sys
from pathlib import Path
from bench.gpu.results import Results
path, how = Path(sys.argv[1]), sys.argv[2]
results = Results.load(path) if path.exists() else Results(path, {})
for name in ("first", "second", "third"):
    if results.has(name):
        continue
    step = results.begin(name)
    step.figures["offline"] = os.environ["HF_HUB_OFFLINE"]
    if name == "second":
        os._exit(int(how)) if how.isdigit() else os.abort()
    step.end("done")
    results.write()
"""
"""A process that takes three steps and dies in the second one."""


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), REHEARSED, tmp_path)


def results_in(directory: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads((directory / "results.json").read_text())
    return found


def test_every_step_is_rehearsed_and_leaves_figures(tmp_path: Path) -> None:
    assert main(["--rehearse", "--budget", str(LONG), "--out", str(tmp_path)]) == 0
    found = results_in(tmp_path)
    assert found["rehearsal"] is True
    assert [(step["name"], step["status"]) for step in found["steps"]] == [(step.name, "done") for step in STEPS]
    assert all(step["figures"] for step in found["steps"])


def test_a_healing_is_rehearsed_and_leaves_its_curves(tmp_path: Path) -> None:
    asked = ["--rehearse", "--heal", "0.1", "--budget", str(LONG), "--out", str(tmp_path)]
    assert steps_main([*asked, "--scratch", str(tmp_path), "--ends", str(time.time() + LONG)]) == 0
    curves = json.loads((tmp_path / "healing.json").read_text())
    figures = results_in(tmp_path)["steps"][-1]["figures"]
    assert isinstance(figures, dict)
    assert {name: len(losses) for name, losses in curves.items()} == {
        name: figures[f"{name}_tokens"] // 64 for name in curves
    }
    assert {"1.27_structure", "4_rounded"} <= curves.keys()


def test_a_step_that_fails_or_lasts_too_long_leaves_its_figures_and_the_others_their_turn(setting: Setting) -> None:
    def broken(setting: Setting, found: Figures) -> None:
        found["known"] = 2
        checks.require(False, "two is three")

    def endless(setting: Setting, found: Figures) -> None:
        found["known"] = 3
        while True:
            pass

    def fine(setting: Setting, found: Figures) -> None:
        found["known"] = 4

    results = Results(setting.scratch / "results.json", {})
    assert run([Step(broken, 5), Step(endless, 0.05), Step(fine, 5)], setting, results, time.time() + LONG) == 1
    assert run([Step(main, 5)], setting, results, time.time() - 1) == 1
    written = results_in(setting.scratch)["steps"]
    assert [each["status"] for each in written] == ["failed", "failed", "done", "skipped"]
    assert [each["figures"] for each in written] == [{"known": 2}, {"known": 3}, {"known": 4}, {}]
    assert "two is three" in str(written[0]["error"])
    assert "too long" in str(written[1]["error"])


@pytest.mark.parametrize("how", ["0", "1", str(AGAIN), "abort"])
def test_a_process_that_dies_in_a_step_leaves_the_others_to_the_next_one(how: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert supervise([sys.executable, "-c", WORKER, str(path), how], path, time.time() + LONG) == 0
    steps = Results.load(path).steps
    assert [(step.name, step.status) for step in steps] == [("first", "done"), ("second", "failed"), ("third", "done")]
    assert steps[1].figures == {"offline": "1"}
    assert "ended with status" in str(steps[1].error)


def test_a_process_that_cannot_begin_is_not_tried_for_ever(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    assert supervise(command, tmp_path / "results.json", time.time() + LONG) == NOTHING_DONE


def test_what_is_too_large_for_a_call_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    for half in ("first", "second"):
        (tmp_path / half).mkdir()
    (tmp_path / "second" / "weights").write_bytes(b"12345")
    carry.check_sizes(tmp_path, carry.LIMIT - 5)
    with pytest.raises(ValueError, match="second"):
        carry.check_sizes(tmp_path, carry.LIMIT - 4)
