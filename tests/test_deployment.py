"""The images and the composition, as far as they can be held to their promises without an engine to build them."""

import os
import re
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from app.settings import Settings
from tests.support.waiting import PATIENCE_SECONDS, wait_for

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))
COMPOSITION: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSITION["services"]

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


@each_dockerfile
def test_hadolint_finds_nothing_to_complain_of(dockerfile: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    outcome = subprocess.run([hadolint, dockerfile], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout) == (0, "")


@each_dockerfile
def test_an_image_runs_as_a_plain_user(dockerfile: Path) -> None:
    final_stage = dockerfile.read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"(?m)^USER (\S+)", final_stage) == ["10001:10001"]


@each_dockerfile
def test_all_that_an_image_copies_is_there_and_sent_to_the_engine(dockerfile: Path) -> None:
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for line in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", dockerfile.read_text()):
        for name in line.split():
            assert (ROOT / name).exists()
            assert any(Path(name).match(pattern) for pattern in sent)


def test_the_image_of_the_api_holds_no_torch() -> None:
    installs = re.findall(r"pip install .*?'\.\[(.+?)\]'", (ROOT / "docker/api.Dockerfile").read_text())
    assert installs == ["server"]
    assert "torch" in installed_with("worker")
    assert not {"torch", "transformers", "accelerate", "safetensors"} & installed_with("server")


def installed_with(extra: str) -> set[str]:
    """The names of all packages that this extra of ours brings along, directly or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"][extra]]
    found: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.name in found:
            continue
        found.add(requirement.name)
        try:
            needed = [Requirement(line) for line in requires(requirement.name) or []]
        except PackageNotFoundError:
            continue
        waiting += [it for it in needed if not it.marker or any(it.marker.evaluate({"extra": e}) for e in extras)]
    return found


def test_the_two_workers_differ_in_where_torch_comes_from() -> None:
    default = re.search(r"(?m)^ARG TORCH_INDEX=(\S+)$", (ROOT / "docker/worker.Dockerfile").read_text())
    assert default is not None
    assert default[1].endswith("/cpu")
    assert "args" not in SERVICES["worker-cpu"]["build"]
    assert SERVICES["worker-gpu"]["build"]["args"] == {"TORCH_INDEX": "https://pypi.org/simple"}


@each_service
def test_a_service_is_hardened(service: dict[str, Any]) -> None:
    assert service["user"].split(":")[0] not in ("root", "0")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@each_service
def test_a_service_that_stays_says_whether_it_is_well(service: dict[str, Any]) -> None:
    ends_by_itself = service["restart"] == "no"
    assert ("test" in service["healthcheck"]) is not ends_by_itself


@each_service
def test_a_service_keeps_its_data_in_named_volumes(service: dict[str, Any]) -> None:
    names = {volume.rsplit(":", 1)[0] for volume in service["volumes"] if not volume.endswith(":ro")}
    assert names <= set(COMPOSITION["volumes"])


@pytest.mark.parametrize("name", ["api", "worker-cpu", "worker-gpu"])
def test_local_models_and_texts_are_found_by_api_and_workers(name: str) -> None:
    service = SERVICES[name]
    mounted = {volume.removesuffix(":ro").rpartition(":")[2] for volume in service["volumes"] if volume.endswith(":ro")}
    assert {
        service["environment"]["MODELPRESS_MODEL_ROOTS"],
        service["environment"]["MODELPRESS_DATA_ROOTS"],
    } == mounted


@each_service
def test_passwords_have_no_defaults(service: dict[str, Any]) -> None:
    for name, value in service["environment"].items():
        if "PASSWORD" in name or "AUTH" in name:
            assert re.fullmatch(r"\$\{\w+_PASSWORD:\?.+\}", value)
        elif name.endswith("_URL"):
            assert re.search(r"://\w*:\$\{\w+_PASSWORD:\?.+\}@", value)
        elif name.endswith("_TOKEN"):
            assert value is None


def test_api_and_dashboard_are_published_to_this_host_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:${MODELPRESS_PORT:-8000}:8000", "127.0.0.1:${GRAFANA_PORT:-3000}:3000"]


def test_database_and_broker_are_reached_from_inside_alone() -> None:
    assert COMPOSITION["networks"]["backend"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["backend"]


@pytest.fixture(params=[200, 503])
def answering_api(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """The port of a server that says whether it is ready, and the status it says it with."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Test output is no access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, request.param
    server.shutdown()
    server.server_close()


def test_the_check_of_the_api_believes_readyz(answering_api: tuple[int, int]) -> None:
    port, status = answering_api
    outcome = check("check_api.py", MODELPRESS_PORT=str(port))
    assert (outcome.returncode == 0) is (status == 200)


def test_the_check_of_the_worker_hears_the_worker_of_this_host(settings: Settings, engine: object) -> None:
    assert settings.database_url is not None
    assert settings.redis_url is not None
    environment = {
        "MODELPRESS_DATABASE_URL": settings.database_url.get_secret_value(),
        "MODELPRESS_REDIS_URL": settings.redis_url.get_secret_value(),
        "MODELPRESS_DATA_DIR": str(settings.data_dir),
        "MODELPRESS_QUEUE": settings.queue,
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "modelpress.cli", "worker"], env={**os.environ, **environment}, cwd=ROOT
    )
    try:
        wait_for(lambda: check("check_worker.py", **environment).returncode == 0)
    finally:
        worker.terminate()
        worker.wait(PATIENCE_SECONDS)


def test_the_check_of_the_worker_fails_without_a_broker() -> None:
    redis_url = "redis://:secret@127.0.0.1:1/0"
    outcome = check("check_worker.py", MODELPRESS_DATABASE_URL="postgresql://none", MODELPRESS_REDIS_URL=redis_url)
    assert outcome.returncode == 1
    assert "the broker does not answer" in outcome.stderr
    assert "secret" not in outcome.stderr


def check(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docker" / script)]
    paths = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env={**os.environ, **paths, **environment}, capture_output=True, text=True)


def test_the_broker_of_the_composition_takes_its_password_from_its_input() -> None:
    command = SERVICES["redis"]["command"]
    printing = command[-1].replace("exec valkey-server -", "exec cat").replace("$$", "$")
    outcome = subprocess.run(["sh", "-c", printing], env={"REDISCLI_AUTH": "s3"}, capture_output=True, text=True)
    assert "requirepass s3\n" in outcome.stdout
    assert "appendonly yes\n" in outcome.stdout
    assert "maxmemory-policy noeviction\n" in outcome.stdout
