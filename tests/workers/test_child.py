"""A child process: how it is fed, heard, stopped, and what it does not know."""

import json
import queue
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import PATIENCE_SECONDS, is_running, wait_for
from workers import child as child_module
from workers.child import Child

PROGRAMS = {
    "echo": "print(json.dumps({'request': sys.stdin.readline()}))",
    "environment": "print(json.dumps(dict(os.environ)))",
    "chatty": "sys.stderr.write('x' * 5_000_000 + '\\nlast words\\n'); print(json.dumps({'done': True})); sys.exit(3)",
    "stubborn": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(json.dumps({'pid': os.getpid()})); time.sleep(600)"
    ),
    "parent": (
        "grandchild = subprocess.Popen(['sleep', '600']); print(json.dumps({'pid': grandchild.pid})); time.sleep(600)"
    ),
    "lingering": "print(json.dumps({'done': True})); sys.stdout.close(); os.close(1); time.sleep(600)",
    "deaf": "print(json.dumps({'pid': os.getpid()}), flush=True); time.sleep(600)",
    "endless": "print('x' * 100); print(json.dumps({'after': True}))",
    "nonsense": "print('not json'); print(json.dumps({'after': True}))",
    "nested": "print('[' * 1_000_000); print(json.dumps({'after': True}))",
    "flooding": (
        "print(json.dumps({'pid': os.getpid()}))\n"
        "for number in range(200_000): print(json.dumps({'number': number}))\n"
        "open(os.environ['HOME'] + '/done', 'w')"
    ),
    "forking": (
        "os.fork() or time.sleep(600); print(json.dumps({'done': True}), flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    ),
}


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that a child can run, on the path that children are given."""
    for name, body in PROGRAMS.items():
        source = f"import json, os, signal, subprocess, sys, time\n{body}\nsys.stdout.closed or sys.stdout.flush()\n"
        (tmp_path / f"program_{name}.py").write_text(source)
    monkeypatch.setattr(child_module, "ROOT", tmp_path)


def start(name: str, tmp_path: Path, request: str = "{}", **environment: str) -> Child:
    return Child(f"program_{name}", request, tmp_path / "home", {"PYTHONUNBUFFERED": "1", **environment})


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("MODELPRESS_DATABASE_URL", "MODELPRESS_REDIS_URL", "MODELPRESS_HUB_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "a-secret")
    yield "a-secret"


def first(child: Child) -> dict[str, Any]:
    return child.next_event(PATIENCE_SECONDS)


def test_neither_a_child_nor_what_it_starts_imports_from_its_directory(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "program_echo.py").write_text("raise SystemExit('imported')")
    with start("echo", tmp_path) as echo:
        assert first(echo) == {"request": "{}\n"}
    with start("environment", tmp_path) as environment:
        assert first(environment)["PYTHONSAFEPATH"] == "1"


def test_a_child_is_given_its_request_and_heard(tmp_path: Path) -> None:
    with start("echo", tmp_path, json.dumps({"job": 1})) as child:
        assert json.loads(first(child)["request"]) == {"job": 1}
        with pytest.raises(EOFError):
            child.next_event(PATIENCE_SECONDS)
        assert child.wait() == 0


def test_a_child_knows_no_secret_of_its_parent(tmp_path: Path, secrets: str) -> None:
    with start("environment", tmp_path, ALLOWED="yes") as child:
        environment = first(child)
    assert environment["ALLOWED"] == "yes"
    assert secrets not in environment.values()
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path / "home")


def test_a_child_finds_the_data_sets_that_lie_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", "/srv/datasets")
    with start("environment", tmp_path) as child:
        assert first(child)["HF_DATASETS_CACHE"] == "/srv/datasets"


def test_a_chatty_child_neither_blocks_nor_fills_memory(tmp_path: Path) -> None:
    with start("chatty", tmp_path) as child:
        assert first(child) == {"done": True}
        with pytest.raises(EOFError):
            child.next_event(PATIENCE_SECONDS)
        assert child.wait() == 3
        assert child.tail[-1] == "last words"


def test_what_is_not_json_is_passed_over(tmp_path: Path) -> None:
    with start("nonsense", tmp_path) as child:
        assert first(child) == {"after": True}


def test_what_nests_too_deep_is_passed_over(tmp_path: Path) -> None:
    with start("nested", tmp_path) as child:
        assert first(child) == {"after": True}


def test_a_child_that_floods_its_output_waits_until_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "MOST_WAITING", 10)
    with start("flooding", tmp_path) as child:
        first(child)
        wait_for(lambda: child.events.full())
        assert not (tmp_path / "home" / "done").exists()
        assert first(child) == {"number": 0}


def test_a_child_that_has_died_is_noticed_though_what_it_forked_holds_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "LINGER_SECONDS", 0.1)
    with start("forking", tmp_path) as child:
        assert first(child) == {"done": True}
        with pytest.raises(EOFError):
            while True:
                with suppress(queue.Empty):
                    child.next_event(0.1)
        assert child.wait() == -signal.SIGKILL


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    with start("stubborn", tmp_path) as child:
        pid = first(child)["pid"]
        assert child.stop(grace_seconds=0.2) == -signal.SIGKILL
        assert not is_running(pid)


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    with start("parent", tmp_path) as child:
        pid = first(child)["pid"]
        assert is_running(pid)
        child.stop(grace_seconds=PATIENCE_SECONDS)
        wait_for(lambda: not is_running(pid))


def test_waiting_for_a_silent_child_comes_back_in_time(tmp_path: Path) -> None:
    with start("stubborn", tmp_path) as child:
        first(child)
        with pytest.raises(queue.Empty):
            child.next_event(0.05)


def test_a_child_that_closes_its_output_and_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "END_SECONDS", 0.2)
    with start("lingering", tmp_path) as child:
        assert first(child) == {"done": True}
        with pytest.raises(EOFError):
            child.next_event(PATIENCE_SECONDS)
        assert child.wait() == -signal.SIGKILL


def test_a_child_that_does_not_read_its_request_holds_nobody(tmp_path: Path) -> None:
    with start("deaf", tmp_path, request="x" * 1_000_000) as child:
        pid = first(child)["pid"]
    assert not is_running(pid)


def test_a_line_that_is_too_long_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "LONGEST_LINE", 40)
    with start("endless", tmp_path) as child:
        assert first(child) == {"after": True}


def test_a_child_sees_the_cards_of_its_worker_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert told.items() <= child_module.child_environment(tmp_path, {}).items()
