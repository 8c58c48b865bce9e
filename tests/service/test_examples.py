"""Every command of the README and the docs, and the Python in them, as a reader would try them.

The service is installed from a wheel and serves in an empty directory. What an example names that is a reader's own is
put in its place: the address, the job, the model. What cannot run here is listed, with the reason.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from app.settings import ServerSettings
from modelpress.client import Client
from modelpress.contract.recipe import Recipe
from tests.support.databases import fresh_database
from tests.support.pages import commands, parts_of_recipes, python_in
from tests.support.ports import free_port
from tests.support.text_models import write_text, write_tiny_model
from tests.support.waiting import PATIENCE_SECONDS, wait_for
from tests.support.wheel import Installed, clean_environment, install_wheel

CHECKOUT = "needs a checkout and its .venv; the tests themselves run in one"
GPU = "needs a GPU"
OCCASION = "modelpress compress ./my-model --ratio 1.3 --out smaller"
ELSEWHERE = {
    "make demo": "downloads weights and takes minutes",
    "make serve": "runs `modelpress serve`, as the fixture here does",
    "MODELPRESS_MODEL_ROOTS=/srv/models make serve": "as `make serve`; the fixture sets it, too",
    "make test": CHECKOUT,
    'make test ARGS="tests/app"': CHECKOUT,
    "make test-full": CHECKOUT,
    "make lint": CHECKOUT,
    "make docs": CHECKOUT,
    "make format": CHECKOUT,
    "make results": CHECKOUT,
    "make architectures": CHECKOUT,
    "make lock": "resolves every dependency anew from the network",
    'make test-full ARGS="tests/contracts -k helium"': "the architecture of the example is made in tests/extensions",
    'make test ARGS="tests/modelpress/spec/test_methods.py tests/service/test_road.py -k drop"': "the method of the "
    "example is made in tests/extensions",
    'make test ARGS="tests/compression/formats/test_registry.py -k half"': "the format of the example is made in "
    "tests/extensions",
    "python -m bench bench/experiments/quality.toml --data DIRECTORY": "takes hours; tests/bench runs the runner",
    "python -m bench.gpu --rehearse --out DIRECTORY": "tests/bench/test_gpu.py runs its steps",
    "python -m bench.gpu --out DIRECTORY": GPU,
    "python -m bench.gpu.carry smollm2.gguf --data ../shared/data": "needs weights and texts that do not come along",
    "python -m bench.chaos --minutes 30 --seed 1": "takes half an hour; tests/bench/test_chaos.py checks its checker",
    "python -m tests.support.screenshots DIRECTORY": "takes pictures for people; tests/app/page opens the same pages",
    "docker compose --profile cpu up --build": "needs Docker; tests/test_deployment.py checks the composition",
    "pip install modelpress": "needs a package registry; the fixture installs the wheel",
    "CUDA_VISIBLE_DEVICES=0 modelpress worker": GPU,
    "CUDA_VISIBLE_DEVICES=1 modelpress worker": GPU,
    OCCASION: "starts a service for the occasion, in a test below",
    "modelpress serve": "runs in the fixture",
}
"""Commands that run elsewhere, or not in a test, and why."""
OPERATING = (
    "MODELPRESS_DATABASE_URL=postgresql://… MODELPRESS_REDIS_URL=redis://… modelpress migrate",
    "…                                                                     modelpress api",
    "…                                                                     modelpress worker",
    "modelpress team search --key read --key submit --key admin",
    "modelpress team search --max-queued 50 --max-running 2 --max-stored-bytes 500000000000",
    "modelpress verify",
)
"""Commands of an operator, which need servers of their own; one test calls them in their order."""
FIRST = (".venv/bin/modelpress compress HuggingFaceTB/SmolLM2-135M-Instruct --ratio 3.5 --format gguf --out small",)
"""The command of the README with which the job is made that all other examples name."""
JOB, MODEL, HOST, UPLOAD, NAME = "job_94f6…", "local:smollm2", "localhost:8000", "upload_3b1c…", "org/name"
SHORT = "--sequences 4 --length 64 --window 64 --max-tokens 512"
"""What makes a job short."""
POSTED = "--detach --device nobodys"
"""What makes a command post its job and leave it waiting."""


@dataclass
class Reader:
    """Tries examples in an empty directory, with a job and a file of text of its own."""

    installed: Installed
    address: str
    directory: Path
    job: str = ""
    upload: str = ""

    def own(self, example: str) -> str:
        """Return an example with what is the reader's own in place."""
        ours = {
            JOB: self.job,
            UPLOAD: self.upload,
            HOST: self.address.removeprefix("http://"),
            NAME: MODEL,
            "HuggingFaceTB/SmolLM2-135M-Instruct": MODEL,
            ".venv/bin/modelpress": "modelpress",
        }
        for theirs, own in ours.items():
            example = example.replace(theirs, own)
        return example

    def run(self, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell."""
        path = f"{self.installed.directory / 'bin'}:{clean_environment()['PATH']}"
        environment = clean_environment() | {"PATH": path, "MODELPRESS_URL": self.address, "COLUMNS": "160"}
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {self.own(command)}"],
            cwd=self.directory,
            env=environment | {"HOME": str(self.directory)} | settings,
            capture_output=True,
            text=True,
        )

    def succeed(self, command: str, **settings: str) -> str:
        """Run a command that must succeed, and return what it prints."""
        done = self.run(command, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, command: str, **settings: str) -> Iterator[None]:
        """Run a command that goes on until it is stopped."""
        program, *words = command.split()
        with (self.directory / f"{words[0]}.log").open("w") as log:
            process = subprocess.Popen(
                [self.installed.directory / "bin" / program, *words],
                cwd=self.directory,
                env=clean_environment() | settings,
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)

    def waiting_job(self) -> str:
        """Return the id of a job that waits for a device that nobody has."""
        recipe = {"model": MODEL, "target_ratio": 1.3, "precision": 16, "method": "low_rank", "device": "nobodys"}
        with Client(self.address) as client:
            return client.submit(Recipe.model_validate(recipe)).id

    def cancelled_job(self) -> str:
        """Return the id of a job that was cancelled."""
        with Client(self.address) as client:
            return client.cancel(self.waiting_job()).id


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, installed: Installed) -> Iterator[Reader]:
    base = tmp_path_factory.mktemp("reader")
    write_tiny_model(base / "models" / "smollm2", positions=2048)
    (base / "texts").mkdir()
    empty = base / "empty"
    empty.mkdir()
    write_text(empty / "text.txt", 500, offset=9)
    (empty / "recipe.yaml").write_text(f"model: {MODEL}\ntarget_ratio: 1.3\n", encoding="utf-8")
    roots = {"MODELPRESS_MODEL_ROOTS": str(base / "models"), "MODELPRESS_DATA_ROOTS": str(base / "texts")}
    with installed.serving(empty, **roots) as address, Client(address) as client:
        found = Reader(installed, address, empty)
        for command in FIRST:
            found.succeed(f"{command} {SHORT}")
        (job,) = client.jobs()
        found.job, found.upload = job.id, client.upload(empty / "text.txt").id
        yield found


@pytest.fixture(autouse=True)
def posted_jobs_are_cancelled(reader: Reader) -> Iterator[None]:
    """Cancels what an example has posted: other tests show what becomes of jobs, and these would take minutes."""
    yield
    with Client(reader.address) as client:
        for job in client.jobs():
            if not job.state.has_ended:
                client.cancel(job.id)


def runnable() -> list[str]:
    """Return the commands that a reader can try on the service of the fixture."""
    return [command for command in commands() if command not in (*ELSEWHERE, *OPERATING, *FIRST)]


def test_no_listed_command_has_left_the_pages() -> None:
    assert {*ELSEWHERE, *OPERATING, *FIRST} - set(commands()) == set()
    assert len(runnable()) >= 25


@pytest.mark.parametrize("command", runnable())
def test_a_command_does_what_it_says(reader: Reader, command: str) -> None:
    _, name, *_ = command.split()
    if name == "compress":
        command = f"{command} {POSTED}"
    elif name in ("cancel", "retry", "delete"):
        command = command.replace(JOB, reader.waiting_job() if name == "cancel" else reader.cancelled_job())
    printed = reader.succeed(command)
    assert '"status": 4' not in printed and '"status":4' not in printed, printed
    assert "HTTP/1.1 4" not in printed, printed


def test_what_was_downloaded_fits_its_digests(reader: Reader) -> None:
    assert (reader.directory / "model.safetensors").stat().st_size > 10_000


@pytest.mark.parametrize(("page", "number"), [("docs/api.md", 0), ("README.md", 0)])
def test_the_python_runs(reader: Reader, page: str, number: int) -> None:
    program = dedent(python_in(page)[number])
    (reader.directory / "example.py").write_text(reader.own(program), encoding="utf-8")
    reader.succeed("python example.py")


def test_a_part_of_a_recipe_that_a_page_shows_has_the_fields_of_one(reader: Reader) -> None:
    """An unknown field would be refused with 422; that it fits the model here is not asked."""
    for part in parts_of_recipes():
        body = {"model": MODEL, "target_ratio": 1.3} | json.loads(f"{{{part}}}")
        command = f"curl -fsS {HOST}/jobs/estimate -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        assert json.loads(reader.succeed(command))["bytes_before"] > 0


@pytest.mark.full
def test_compressing_a_local_model_starts_a_service_for_the_occasion(reader: Reader, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "my-model", positions=2048)
    alone = Reader(reader.installed, "", tmp_path)
    alone.succeed(f"env -u MODELPRESS_URL {OCCASION} --precision 16 {SHORT}")
    assert (tmp_path / "smaller" / "model.safetensors").exists()


def test_an_operator_runs_the_parts_on_servers_of_their_own(
    reader: Reader, servers: ServerSettings, tmp_path: Path
) -> None:
    """The commands of `docs/operating.md` in their order, in an empty directory, on a fresh database."""
    migrate, api, worker, key, limits, verify = OPERATING
    operator = Reader(reader.installed, f"http://127.0.0.1:{free_port()}", tmp_path)
    with fresh_database(servers, "operated") as url:
        settings = {
            "MODELPRESS_DATABASE_URL": url,
            "MODELPRESS_REDIS_URL": servers.redis_url.get_secret_value(),
            "MODELPRESS_PORT": operator.address.rpartition(":")[2],
            "MODELPRESS_QUEUE": "operated",
        }
        operator.succeed(migrate.split("… ")[-1], **settings)
        token = operator.succeed(key, **settings).split()[-1]
        operator.succeed(limits, **settings)
        with (
            operator.running(api.removeprefix("…"), **settings),
            operator.running(worker.removeprefix("…"), **settings),
            Client(operator.address, api_key=token) as client,
        ):
            wait_for(lambda: client.readiness() is None)
            assert list(client.jobs()) == []
            wait_for(lambda: client.workers())
        assert "0 of 0 files" in operator.succeed(verify, **settings)
