"""The kind 'vllm' on a tiny model, with a stand-in for the interpreter that has vLLM."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.experiment import Place
from bench.kinds.bits import Rounding
from bench.kinds.vllm import GENERATED, PYTHON, Served, Vllm
from bench.texts import Piece
from tests.support.text_models import amplify_blocks, write_text, write_tiny_model

ANSWERS = f"""#!{sys.executable}
import json, pathlib, sys
asked = json.loads(pathlib.Path(sys.argv[3]).read_text())
chosen = [[-1.0] * (len(ids) - 1) for ids in asked["ids"]]
found = {{"version": "0", "chosen": chosen, "generated": asked["prompt"]}}
assert asked["generate"] == {GENERATED} and (pathlib.Path(sys.argv[2]) / "config.json").exists()
pathlib.Path(sys.argv[4]).write_text(json.dumps(found))
"""
FAILS = f"#!{sys.executable}\nraise SystemExit('no kernel for this')\n"

Run = Callable[[str], Served]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    place = Place(tmp_path / "data", tmp_path / "scratch")
    place.data.mkdir()
    place.scratch.mkdir()
    write_text(place.data / "words.txt", 600)
    amplify_blocks(write_tiny_model(place.data / "model"))

    def with_answers(script: str) -> Served:
        python = tmp_path / "python"
        python.write_text(script)
        python.chmod(0o755)
        monkeypatch.setenv(PYTHON, str(python))
        case = Rounding(name="four", ratio=2, format="safetensors", precision=4)
        piece = Piece(source="words.txt")
        experiment = Vllm(
            kind="vllm",
            title="",
            about="",
            model=str(place.data / "model"),
            calibration=piece,
            asked=piece,
            length=32,
            cases=(case,),
        )
        (row,) = experiment.measure((case,), place)
        assert len(experiment.table((row,)).cells) == 1
        return row

    return with_answers


def test_what_vllm_computes_is_compared_with_transformers(run: Run) -> None:
    row = run(ANSWERS)
    assert row.error is None and row.text
    assert row.difference is not None and row.difference > row.noise > 0


def test_a_package_that_vllm_does_not_serve_is_a_row_too(run: Run) -> None:
    row = run(FAILS)
    assert row.error == "no kernel for this" and row.difference is None
