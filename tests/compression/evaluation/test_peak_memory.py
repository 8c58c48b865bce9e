"""What a stranger's process takes for a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.text_models import write_tiny_model
from tests.support.waiting import is_running, wait_for
from workers.compression.evaluation.peak_memory import peak_memory
from workers.compression.evaluation.size import stored_size


def test_a_larger_model_takes_more_by_about_its_weights_and_one_that_does_not_open_has_no_figure(
    tmp_path: Path,
) -> None:
    small, large = (write_tiny_model(tmp_path / str(width), hidden_size=width) for width in (32, 1024))
    (tmp_path / "none").mkdir()
    first, second, none = peak_memory([small, large, tmp_path / "none"], prompt=8, new_tokens=2)
    assert none is None
    assert first is not None
    assert second is not None
    weights = stored_size(large).bytes
    assert 0.8 * weights < second - first < 3 * weights


def test_a_measurement_that_takes_too_long_is_none(tmp_path: Path) -> None:
    assert peak_memory([write_tiny_model(tmp_path / "tiny")], timeout=0.01) == [None]


MEASURING = Path(sys.modules[peak_memory.__module__].__file__ or "").with_name("open_and_run.py")
SLEEPER = """
import os, pathlib, time
pathlib.Path({told!r}).write_text(str(os.getpid()))
time.sleep(600)
"""


def test_when_measuring_is_killed_no_process_goes_on_with_it(tmp_path: Path) -> None:
    directory, told = tmp_path / "sleeps", tmp_path / "told"
    directory.mkdir()
    auto_map = {"AutoConfig": "sleeper.Config", "AutoModelForCausalLM": "sleeper.Model"}
    (directory / "config.json").write_text(json.dumps({"model_type": "sleeper", "auto_map": auto_map}))
    (directory / "sleeper.py").write_text(SLEEPER.format(told=str(told)))
    request = {"directories": [str(directory)], "trusted": [str(directory)], "threads": 1, "dtype": "float32"}
    command = [sys.executable, "-I", str(MEASURING), json.dumps(request)]
    with subprocess.Popen(command, env={**os.environ, "HF_HOME": str(tmp_path / "home")}) as measuring:
        wait_for(lambda: told.is_file() and bool(told.read_text()))
        measuring.kill()
    wait_for(lambda: not is_running(int(told.read_text())))
