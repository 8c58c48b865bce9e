"""The process that fetches a job's model and text: what it says, and when it ends."""

import errno
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from app.sources.download import Downloads
from tests.support.checkpoints import single_file
from tests.support.fetching import BIG_FILES, NAME, MakeRequest, contents, silent
from tests.support.hub import LoopbackHub
from tests.support.waiting import PATIENCE_SECONDS
from workers.cages import fetch_cage
from workers.fetch import FetchReport, FetchRequest, fetch, fetch_report, run

ROOT = Path(__file__).parents[2]


class Process:
    """`workers.fetch` in its cage, as the supervisor runs it."""

    def __init__(self, request: FetchRequest) -> None:
        cage = fetch_cage(request, request.sources_dir.parent / "home")
        with suppress(FileExistsError):
            request.sources_dir.mkdir()
        self.process = subprocess.Popen(
            replace(cage, listable=(str(ROOT),)).command("workers.fetch"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=request.sources_dir.parent,
            env={"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdin is not None
        self.process.stdin.write(request.model_dump_json() + "\n")
        self.process.stdin.flush()

    def result(self) -> tuple[int, FetchReport, str]:
        """Exit status, last report, and all that was written."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with self.process:
            output, errors = self.process.stdout.read(), self.process.stderr.read()
            status = self.process.wait()
        return status, fetch_report(json.loads(output.splitlines()[-1])), output + errors


def test_the_process_reports_what_it_fetched(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file()).gated = True
    hub.token = "hf_secret"
    status, report, output = Process(request_for()).result()
    assert (status, report.event) == (0, "done")
    assert contents(fetch(request_for(), silent).model_path) == single_file()
    assert "hf_secret" not in output


@pytest.mark.parametrize(("status", "code"), [(503, "hub_unavailable"), (None, "unknown_model")])
def test_the_process_says_why_it_failed(
    hub: LoopbackHub, request_for: MakeRequest, status: int | None, code: str
) -> None:
    hub.status = status
    exit_status, report, _ = Process(request_for(revision="c" * 40, retry_delays=())).result()
    assert exit_status == 1
    assert report.event == "error"
    assert (report.code, report.stage) == (code, "fetch")


def test_a_directory_that_cannot_be_written_is_reported(request_for: MakeRequest, tmp_path: Path) -> None:
    (tmp_path / "sources").write_text("a file where the directory should be")
    exit_status, report, _ = Process(request_for(revision="c" * 40)).result()
    assert exit_status == 1
    assert report.event == "error"
    assert report.code == "storage_failed"


def test_a_full_disk_is_reported_as_one(
    request_for: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Downloads, "model", full)
    reports: list[FetchReport] = []
    assert run(request_for(revision="c" * 40), reports.append) == 1
    assert [(report.event, getattr(report, "code", None)) for report in reports] == [("error", "disk_full")]


def test_the_process_ends_with_its_supervisor_and_the_next_one_goes_on(
    hub: LoopbackHub, request_for: MakeRequest
) -> None:
    hub.add(NAME, BIG_FILES)
    hub.released.clear()
    orphan = Process(request_for())
    assert hub.held.wait(PATIENCE_SECONDS)
    assert orphan.process.stdin is not None
    orphan.process.stdin.close()
    assert orphan.process.wait(PATIENCE_SECONDS) != 0
    hub.released.set()
    assert contents(fetch(request_for(), silent).model_path) == BIG_FILES


def test_two_processes_share_one_download(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, BIG_FILES)
    hub.released.clear()
    first = Process(request_for())
    assert hub.held.wait(PATIENCE_SECONDS)
    waiting = threading.Event()
    second = threading.Thread(target=fetch, args=(request_for(), lambda report: waiting.set()))
    second.start()
    assert waiting.wait(PATIENCE_SECONDS)
    hub.released.set()
    assert first.result()[0] == 0
    second.join(PATIENCE_SECONDS)
    assert sum(seen.path.endswith("model.safetensors") and not seen.redirected for seen in hub.requests) == 1


def test_the_process_knows_no_torch() -> None:
    code = "import sys, workers.fetch; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
