"""Programs of children that compute nothing, for tests of what surrounds them."""

from collections.abc import Callable
from pathlib import Path
from textwrap import indent

from modelpress.contract.codes import FailureCode
from tests.support.results import COMPARISON
from tests.support.waiting import wait_for
from workers.messages import DoneReport, ErrorReport, ProgressReport

DONE = DoneReport(package=Path("/package"), achieved_ratio=1.3, metrics=COMPARISON)
WEIGHTS = "weights"
FETCHES = "print(json.dumps({'event': 'done', 'model_path': '/model', 'texts': {}, 'text_revisions': {}}))"
FINISHES = f"""
os.makedirs("package", exist_ok=True)
open("package/model.safetensors", "w").write({WEIGHTS!r})
print({DONE.model_dump_json()!r}.replace("/package", os.getcwd() + "/package"))
"""
HANGS = "time.sleep(600)"
BEGUN, TOLD = "begun", "told"
WAITS = f"""
open({BEGUN!r}, "w").close()
while not os.path.exists({TOLD!r}): time.sleep(0.05)
{FINISHES}"""
"""Shows that it has begun by a file, and finishes when it finds another one beside it."""
HANGS_ONCE = f"""
if json.loads(sys.stdin.readline())["attempt"] == 1:
    open({BEGUN!r}, "w").close()
    {HANGS}
{FINISHES}"""
"""Hangs at the first attempt."""
CRASHES = "os.kill(os.getpid(), signal.SIGSEGV)"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
FULL = ErrorReport(code=FailureCode.DISK_FULL, message="the disk is full")
FINDS_THE_DISK_FULL = f"print({FULL.model_dump_json()!r}); sys.exit(1)"

Put = Callable[..., Path]


def enters(stage: str) -> str:
    """Return the program of a child that reports the beginning of a stage and hangs in it."""
    return f"print({ProgressReport(stage=stage, fraction=0.5).model_dump_json()!r}, flush=True); {HANGS}"


def write_children(directory: Path, runner: str = FINISHES, fetch: str = FETCHES) -> Path:
    """Write the two programs as the package `workers` in `directory`, and return `directory`."""
    package = directory / "workers"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    for module, body in (("fetch", fetch), ("runner", runner)):
        code = f"import json, os, signal, sys, time\ndef main():\n{indent(body, '    ')}\n"
        (package / f"{module}.py").write_text(code)
    return directory


def begun(work_dir: Path, job_id: str) -> Path:
    """Wait until a child of a job has begun, and return the directory that it runs in."""
    (file,) = wait_for(lambda: list((work_dir / job_id).rglob(BEGUN)))
    return file.parent
