"""`lint-imports` says no to an import that breaks a rule, whichever way it points."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Check = Callable[[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code that a test may spoil."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("app", "modelpress", "workers"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True)


def test_the_code_as_it_is_breaks_no_rule(tree: Path) -> None:
    checked = check(tree)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("app/jobs/service.py", "import workers.compression.math", "The packages have layers"),
        ("modelpress/contract/job.py", "import workers.messages", "needs no part of the service"),
        ("workers/compression/math/fitting.py", "import modelpress.contract.job", "The compression library is a leaf"),
        ("workers/compression/math/fitting.py", "import workers.messages", "The workers have layers"),
        (
            "workers/compression/math/fitting.py",
            "import workers.compression.steps",
            "The compression library has layers",
        ),
        ("modelpress/spec/errors.py", "import workers.compression.math", "needs no part of the service"),
        ("modelpress/spec/errors.py", "import torch", "Only processes that compute import torch"),
        ("workers/lease.py", "import torch", "Only processes that compute import torch"),
        ("workers/supervisor.py", "import workers.stages.compute", "Only processes that compute import torch"),
        ("workers/stages/compute.py", "import app.db", "Processes that compute know neither database"),
        ("workers/stages/compute.py", "import workers.supervisor", "The workers have layers"),
        ("modelpress/contract/job.py", "import app.jobs.states", "needs no part of the service"),
        ("app/jobs/store.py", "import app.api.problems", "The app has layers"),
        ("app/jobs/store.py", "import fastapi", "Only the API and the page know the web framework"),
        ("modelpress/client/client.py", "import app.db", "needs no part of the service"),
        ("app/api/artifacts.py", "import app.storage.directory", "Only the registry knows the storage backends"),
        ("modelpress/spec/steps.py", "import modelpress.contract.job", "What can be imported anywhere has layers"),
        ("modelpress/cli/tables.py", "import app.settings", "needs no part of the service"),
        ("app/newcomer.py", "", "The app has layers"),
    ],
)
def test_a_bad_import_is_caught(tree: Path, module: str, line: str, rule: str) -> None:
    path = tree / module
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n")
    try:
        checked = check(tree)
    finally:
        path.unlink() if before is None else path.write_text(before)
    assert checked.returncode != 0
    assert rule in " ".join(checked.stdout.split()).replace(" BROKEN", "")
