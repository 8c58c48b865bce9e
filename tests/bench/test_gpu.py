"""The checks for a GPU, rehearsed on the CPU: every step runs, and the results file says so."""

import json
from pathlib import Path

import pytest
import torch

from bench.gpu import checks
from bench.gpu.__main__ import STEPS, Step, main, take
from bench.gpu.results import Figures
from bench.gpu.setting import REHEARSED, Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), REHEARSED, tmp_path)


def test_every_step_is_rehearsed_and_leaves_figures(tmp_path: Path) -> None:
    assert main(["--rehearse", "--budget", "3000", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["rehearsal"] is True
    assert [(step["name"], step["status"]) for step in found["steps"]] == [(step.name, "done") for step in STEPS]
    assert all(step["figures"] for step in found["steps"])


def test_a_healing_is_rehearsed_and_leaves_its_curve(tmp_path: Path) -> None:
    assert main(["--rehearse", "--heal", "0.1", "--budget", "3000", "--out", str(tmp_path)]) == 0
    curves = json.loads((tmp_path / "healing.json").read_text())
    assert [len(curve["losses"]) for curve in curves.values()] == [curve["tokens"] // 64 for curve in curves.values()]


def test_a_step_that_fails_or_lasts_too_long_leaves_the_others_their_turn(setting: Setting) -> None:
    def broken(setting: Setting) -> Figures:
        checks.require(False, "two is three")
        return {}

    def endless(setting: Setting) -> Figures:
        while True:
            pass

    failed, late, skipped = (
        take(Step(broken, 5), setting, 60),
        take(Step(endless, 5), setting, 0.05),
        take(Step(broken, 5), setting, -1),
    )
    assert [each.status for each in (failed, late, skipped)] == ["failed", "failed", "skipped"]
    assert "two is three" in str(failed.error)
    assert "too long" in str(late.error)
