"""Every command of the pages on API and command line, and the Python in them, as a reader would try them.

The service is installed from a wheel and serves in an empty directory. What an example names that is a reader's own is
put in its place: the address, the job, the model.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from modelpress.client import Client
from modelpress.contract.recipe import Recipe
from tests.support.house import ROOT
from tests.support.text_models import write_text, write_tiny_model
from tests.support.wheel import Installed, clean_environment, install_wheel

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
SHELL = re.compile(r"^    \$ (?P<command>.*(?:\n        .*)*)", re.MULTILINE)
CALLS = re.compile(r"^    (?P<command>modelpress [^#\n]*)", re.MULTILINE)
PYTHON = re.compile(r"^    from pathlib import Path\n(?:(?:    .*)?\n)*", re.MULTILINE)
JOB, MODEL, HOST, UPLOAD = "job_94f6…", "local:smollm2", "localhost:8000", "upload_3b1c…"
NEEDS_MORE = ("compress", "estimate", "retry")
"""Commands that the page has for a model of the hub, or a job that has failed: of these the options are checked."""


@dataclass
class Reader:
    """Tries examples in an empty directory, with a job and a file of text of its own."""

    installed: Installed
    address: str
    directory: Path
    job: str
    upload: str

    def own(self, example: str) -> str:
        """Return an example with what is the reader's own in place."""
        for theirs, ours in ((JOB, self.job), (UPLOAD, self.upload), (HOST, self.address.removeprefix("http://"))):
            example = example.replace(theirs, ours)
        return example

    def waiting_job(self) -> str:
        """Return the id of a job that waits for a device that nobody has."""
        recipe = {"model": MODEL, "target_ratio": 1.3, "precision": 16, "method": "low_rank", "device": "nobodys"}
        with Client(self.address) as client:
            return client.submit(Recipe.model_validate(recipe)).id

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell."""
        path = f"{self.installed.directory / 'bin'}:{clean_environment()['PATH']}"
        environment = clean_environment() | {"PATH": path, "MODELPRESS_URL": self.address, "COLUMNS": "160"}
        return subprocess.run(
            ["bash", "-c", self.own(command)], cwd=self.directory, env=environment, capture_output=True, text=True
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    base = tmp_path_factory.mktemp("reader")
    write_tiny_model(base / "models" / "smollm2", positions=2048)
    (base / "texts").mkdir()
    write_text(base / "texts" / "one.txt", 600)
    write_text(base / "texts" / "two.txt", 300, offset=4)
    empty = base / "empty"
    empty.mkdir()
    write_text(empty / "text.txt", 500, offset=9)
    roots = {"MODELPRESS_MODEL_ROOTS": str(base / "models"), "MODELPRESS_DATA_ROOTS": str(base / "texts")}
    installed = install_wheel(tmp_path_factory.mktemp("wheel"))
    with installed.serving(empty, **roots) as address, Client(address) as client:
        recipe = {
            "model": MODEL,
            "target_ratio": 1.3,
            "method": "low_rank",
            "precision": 16,
            "calibration": {"datasets": ["local:one.txt"], "sequences": 8, "length": 64},
            "evaluation": {"datasets": ["local:two.txt"], "window": 64, "max_tokens": 512},
        }
        job = client.submit(Recipe.model_validate(recipe))
        *_, ended = client.wait(job.id)
        assert ended.state == "succeeded", ended.error
        yield Reader(installed, address, empty, job.id, client.upload(empty / "text.txt").id)


@pytest.fixture(autouse=True)
def posted_jobs_are_cancelled(reader: Reader) -> Iterator[None]:
    """Cancels what an example has posted: other tests show what becomes of jobs, and these would take minutes."""
    yield
    with Client(reader.address) as client:
        for job in client.jobs():
            if not job.state.has_ended:
                client.cancel(job.id)


def curls() -> list[str]:
    return [dedent(found["command"]) for found in SHELL.finditer(PAGE) if found["command"].startswith("curl")]


def test_the_page_has_examples() -> None:
    assert len(curls()) >= 8
    assert len(CALLS.findall(PAGE)) >= 12
    assert len(PYTHON.findall(PAGE)) == 1


@pytest.mark.parametrize("command", curls())
def test_a_call_with_curl_does_what_it_says(reader: Reader, command: str) -> None:
    done = reader.run(f"set -o pipefail; {command}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status": 4' not in done.stdout and '"status":4' not in done.stdout, done.stdout
    assert "HTTP/1.1 4" not in done.stdout, done.stdout


def test_what_was_downloaded_fits_its_digests(reader: Reader) -> None:
    assert (reader.directory / "model.safetensors").stat().st_size > 10_000


def test_the_python_runs(reader: Reader) -> None:
    (program,) = PYTHON.findall(PAGE)
    (reader.directory / "example.py").write_text(reader.own(dedent(program)), encoding="utf-8")
    done = reader.run("python example.py")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [found.strip() for found in CALLS.findall(PAGE)])
def test_a_command_exists_as_it_is_written(reader: Reader, command: str) -> None:
    _, name, *words = shlex.split(command)
    if name in NEEDS_MORE:
        known = reader.run(f"modelpress {name} --help").stdout
        assert [word for word in words if word.startswith("--") and word not in known] == []
        return
    done = reader.run(command.replace(JOB, reader.waiting_job()) if name == "cancel" else command)
    assert done.returncode == 0, done.stdout + done.stderr
