"""What other processes of the same user can read of one that hides."""

import subprocess
import sys

import pytest

from tests.support.hiding import is_hidden

WAITS = (
    "import sys; from workers.cage import keep_capabilities; keep_capabilities(0); {}; print('ready', flush=True); "
    "sys.stdin.read()"
)
"""Without capabilities, since one that has fewer than another is shown nothing of it in any case."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hide a process")
@pytest.mark.parametrize(("act", "hidden"), [("from app.process import hide; hide()", True), ("pass", False)])
def test_a_process_that_hides_shows_its_environment_to_nobody_of_its_user(act: str, hidden: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS.format(act)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert is_hidden(process.pid) == hidden
        process.communicate("")
