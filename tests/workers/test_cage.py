"""What a process in the cage cannot do, as far as this machine lets it have one."""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cages import has_landlock
from workers import cage
from workers.cage import Cage, give

PROGRAM = """
import json, os, socket, subprocess, sys

def outcome(act):
    try:
        return act() or "allowed"
    except Exception as error:
        return type(error).__name__

def main():
    port, outside, parent = int(sys.stdin.readline()), sys.stdin.readline().strip(), os.getppid()
    inside = [sys.executable, "-I", "-c", "import os; open('by_a_child', 'w'); print(os.getuid())"]
    print(json.dumps({
        "reads the secret": outcome(lambda: open(outside).read()),
        "reads the environment of the worker": outcome(lambda: open(f"/proc/{parent}/environ", "rb").read().hex()),
        "writes outside": outcome(lambda: open(outside + ".new", "w").close()),
        "signals the worker": outcome(lambda: os.kill(parent, 0)),
        "connects": outcome(lambda: socket.create_connection(("127.0.0.1", port), 5).close()),
        "reads the model": outcome(lambda: open(os.path.dirname(outside) + "/model/weights").read()),
        "writes inside": outcome(lambda: open("result", "w").close()),
        "runs a program": outcome(lambda: subprocess.run(inside, capture_output=True, text=True).stdout.strip()),
        "user": os.getuid(),
        "no new privileges": "NoNewPrivs:\\t1" in open("/proc/self/status").read(),
        "core": __import__("resource").getrlimit(4),
        "uses a local socket": outcome(lambda: socket.socket(socket.AF_UNIX).close()),
        "makes a pair of sockets": outcome(lambda: [each.close() for each in socket.socketpair()] and None),
        "ended first": open("/proc/self/oom_score_adj").read().strip(),
        "asks for much memory": outcome(lambda: bytes(2 << 30)[:0]),
    }))
"""


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")

needs_filter = pytest.mark.skipif(platform.machine() not in cage.SOCKET_CALL, reason="no filter for this machine")


@pytest.fixture(scope="module")
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def attempts(directory: Path, port: int, bounds: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """Return what a program in a cage of `directory` could do there and outside."""
    code, work, model = directory / "code", directory / "work", directory / "model"
    for each in (code / "app", code / "workers", work, model):
        each.mkdir(parents=True)
    (code / "attempts.py").write_text(PROGRAM)
    (directory / "secret").write_text("a password")
    (directory / "secret").chmod(0o600)
    (model / "weights").write_text("numbers")
    shut = Cage(writable=(str(work),), readable=(str(model),), listable=(str(code),), **changes)
    done = subprocess.run(
        [*bounds, *shut.command("attempts")],
        input=f"{port}\n{directory / 'secret'}\n",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(code), "HOME": str(work)},
        cwd=work,
        capture_output=True,
        text=True,
        check=True,
    )
    return {"parts": done.stderr, **json.loads(done.stdout)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, listener: int) -> dict[str, Any]:
    return attempts(tmp_path_factory.mktemp("caged"), listener)


@pytest.mark.parametrize(
    "what", ["reads the secret", "reads the environment of the worker", "writes outside", "signals the worker"]
)
@needs_landlock
def test_what_lies_outside_is_out_of_reach(found: dict[str, Any], what: str) -> None:
    assert found[what] == "PermissionError"


def test_nobody_outside_is_reached_over_the_network(found: dict[str, Any]) -> None:
    assert found["connects"] in ("ConnectionRefusedError", "PermissionError")


@needs_filter
@pytest.mark.parametrize("kind", ["found", "fetching"])
def test_no_other_process_of_the_machine_is_asked_over_a_local_socket(
    kind: str, request: pytest.FixtureRequest
) -> None:
    done = request.getfixturevalue(kind)
    assert (done["uses a local socket"], done["makes a pair of sockets"]) == ("PermissionError", "allowed")


def test_the_model_is_read_and_the_work_directory_written_by_its_programs_too(found: dict[str, Any]) -> None:
    assert (found["reads the model"], found["writes inside"]) == ("numbers", "allowed")
    assert found["runs a program"] == str(found["user"])


def test_there_are_no_new_privileges_and_no_core_dumps(found: dict[str, Any]) -> None:
    assert (found["no new privileges"], found["core"]) == (True, [0, 0])


def test_where_memory_runs_out_the_process_is_ended_before_others(found: dict[str, Any]) -> None:
    assert found["ended first"] == "1000"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_process_of_a_worker_that_is_root_has_a_user_of_its_own(found: dict[str, Any]) -> None:
    assert found["user"] == cage.COMPUTE_USER


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory, listener: int) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("fetching")
    return attempts(directory, listener, network=True, user=cage.FETCH_USER, memory=1 << 30)


def test_a_process_whose_memory_is_bounded_gets_no_more(fetching: dict[str, Any]) -> None:
    assert fetching["asks for much memory"] == "MemoryError"


@pytest.mark.parametrize(
    "what", ["reads the secret", "reads the environment of the worker", "writes outside", "signals the worker"]
)
@needs_landlock
def test_a_process_that_fetches_has_the_network_and_nothing_else_that_lies_outside(
    fetching: dict[str, Any], what: str
) -> None:
    assert (fetching[what], fetching["connects"]) == ("PermissionError", "allowed")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_process_that_fetches_is_another_user_than_the_one_that_computes(fetching: dict[str, Any]) -> None:
    assert fetching["user"] == cage.FETCH_USER


@pytest.mark.skipif(os.geteuid() != 0, reason="takes capabilities away from root")
def test_where_there_can_be_no_other_network_there_are_no_sockets(tmp_path: Path, listener: int) -> None:
    bounds = ("setpriv", "--bounding-set=-all,+dac_override,+chown")
    found = attempts(tmp_path, listener, bounds)
    assert found["connects"] == "PermissionError"
    assert "no sockets" in found["parts"]


def test_what_is_given_back_has_no_other_name_elsewhere(tmp_path: Path) -> None:
    elsewhere, package = tmp_path / "elsewhere", tmp_path / "package"
    package.mkdir()
    elsewhere.touch()
    os.link(elsewhere, package / "linked")
    (package / "own").touch()
    changed: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "chown", lambda path, *_, **__: changed.append(Path(path)))
        give([package], 12345, 12345)
    assert changed == [package, package / "own"]


def test_a_file_that_is_moved_meanwhile_does_not_keep_the_others_from_being_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").touch()
    changed: list[Path] = []
    monkeypatch.setattr(os, "walk", lambda place: [(str(place), [], ["moved", "there"])])
    monkeypatch.setattr(os, "chown", lambda path, *_, **__: changed.append(Path(path)))
    give([tmp_path], 12345, 12345)
    assert changed == [tmp_path, tmp_path / "there"]


def test_the_cage_imports_the_standard_library_alone() -> None:
    listing = "import sys; sys.path.insert(0, sys.argv[1]); import cage; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", listing, str(Path(cage.__file__).parent)], capture_output=True, text=True
    )
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert modules - set(sys.stdlib_module_names) <= {"cage", "__main__"}
