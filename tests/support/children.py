"""Programs of children that compute nothing, for tests of what surrounds them."""

from collections.abc import Callable
from pathlib import Path

from modelpress.contract.codes import FailureCode
from tests.support.results import COMPARISON
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
CRASHES = "os.kill(os.getpid(), signal.SIGSEGV)"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
FULL = ErrorReport(code=FailureCode.DISK_FULL, message="the disk is full")
FINDS_THE_DISK_FULL = f"print({FULL.model_dump_json()!r}); sys.exit(1)"

Put = Callable[..., Path]


def enters(stage: str) -> str:
    """Return the program of a child that reports the beginning of a stage and hangs in it."""
    return f"print({ProgressReport(stage=stage, fraction=0.5).model_dump_json()!r}, flush=True); {HANGS}"
