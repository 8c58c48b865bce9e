"""The service and its clients, installed from a wheel, in a directory full of modules that bear their names."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import ROOT
from tests.support.wheel import Installed, install_wheel

OURS = ("app", "modelpress", "workers", "migrations")
OTHERS = ("celery", "celeryconfig", "fastapi", "sitecustomize", "sqlalchemy", "torch", "transformers", "yaml")
HOSTILE = """
import pathlib
with (pathlib.Path(__file__).parents[1] / "imported").open("a") as file:
    file.write(__name__ + " ")
raise SystemExit("a module of the current directory was imported")
"""

ASK = """
import sys
from modelpress import Client, Recipe
with Client(sys.argv[1]) as client:
    print(client.submit(Recipe.model_validate_json(sys.argv[2])).id)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install_wheel(tmp_path_factory.mktemp("wheel"))


def lay_out(directory: Path, *names: str) -> Path:
    """Make a directory of packages that must not be imported."""
    for name in names:
        package = directory / name
        package.mkdir(parents=True)
        for module in ("__init__", "cli", "client", "contract", "rank", "runner", "spec"):
            (package / f"{module}.py").write_text(HOSTILE)
    return directory


def test_nothing_is_imported_from_the_current_directory(
    installed: Installed, tiny: dict[str, Any], model_root: Path, data_root: Path, tmp_path: Path
) -> None:
    everything = lay_out(tmp_path / "everything", *OURS, *OTHERS)
    ours = lay_out(tmp_path / "ours", "app", "workers", "migrations")
    settings = {
        "MODELPRESS_MODEL_ROOTS": str(model_root),
        "MODELPRESS_DATA_ROOTS": str(data_root),
    }
    with installed.serving(everything, **settings) as address:
        posted = installed.run(installed.python, "-c", ASK, address, json.dumps(tiny), cwd=ours)
        assert posted.returncode == 0, posted.stderr
        waited = installed.run(installed.command, "wait", posted.stdout.strip(), "--url", address, cwd=everything)
        assert waited.returncode == 0, waited.stderr + (everything / "serve.log").read_text()
    assert not (everything / "imported").exists(), (everything / "imported").read_text()
    assert not (ours / "imported").exists()


def test_templates_and_files_of_the_page_come_along(installed: Installed) -> None:
    (shipped,) = installed.directory.glob("lib/python*/site-packages/app/page")
    ours = ROOT / "app" / "page"
    wanted = {path.relative_to(ours) for folder in ("templates", "static") for path in (ours / folder).rglob("*.*")}
    assert wanted <= {path.relative_to(shipped) for path in shipped.rglob("*.*")}
