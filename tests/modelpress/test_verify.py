"""`modelpress verify` as an operator meets it after a restore."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.db import Sessions
from app.serve import environment
from app.settings import ServerSettings
from tests.support.api import CONTENTS, finish

ROOT = Path(__file__).parents[2]
COUNT = len(CONTENTS)


@pytest.fixture
def weights(settings: ServerSettings, sessions: Sessions, tmp_path: Path) -> Path:
    """The file of the weights of a finished job."""
    finish(settings, sessions, tmp_path)
    return settings.data_dir / "artifacts" / "job_done" / "1" / "model.safetensors"


def verify(settings: ServerSettings, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelpress.cli", "verify", *options],
        env=environment(settings) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_whole_files_are_counted_and_the_exit_code_is_0(settings: ServerSettings, weights: Path) -> None:
    done = verify(settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{COUNT} of {COUNT} files of 1 jobs and 0 uploads are whole" in done.stdout


def test_a_damaged_file_is_named_and_the_exit_code_is_1(settings: ServerSettings, weights: Path) -> None:
    weights.write_bytes(b"half")
    done = verify(settings)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"job_done/model.safetensors has 4 of {len(CONTENTS[weights.name])} bytes" in done.stdout
    assert f"{COUNT - 1} of {COUNT} files" in done.stdout


def test_a_program_reads_the_same_as_json(settings: ServerSettings, weights: Path) -> None:
    weights.unlink()
    done = verify(settings, "--json")
    assert done.returncode == 1
    damage = {"job_id": "job_done", "name": "model.safetensors", "what": "is missing"}
    assert json.loads(done.stdout)["damages"] == [damage]
