"""What a child leaves behind outside its session ends with it, where its worker adopts such processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import PATIENCE_SECONDS, is_running
from workers.child import ROOT

LEAVER = """
import json, os, subprocess, sys
inner = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=-3, stderr=-3).pid)"
left = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, start_new_session=True)
print(json.dumps({"pid": int(left.stdout)}), flush=True)
"""
WORKER = """
import json, subprocess, sys
from pathlib import Path
from workers import child
from workers.orphans import BROOD

BROOD.adopt()
own = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child.ROOT = Path(sys.argv[1])
with child.Child("leaver", "{}", child.ROOT / "home", {}) as leaver:
    left = leaver.next_event(600)["pid"]
print(json.dumps({"left": left, "own": own.poll()}))
own.kill()
"""


def test_a_process_that_leaves_the_session_of_a_child_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(LEAVER)
    found = json.loads(
        subprocess.run(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
        ).stdout
    )
    assert not is_running(found["left"])
    assert found["own"] is None, "a process of the worker itself goes on"
