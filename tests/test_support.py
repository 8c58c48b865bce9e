"""What tests share lies in tests/support."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULES = sorted(path for path in TESTS.rglob("*.py") if path.name.startswith(("test_", "conftest")))


def imported_tests(module: Path) -> set[str]:
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.split(".")[0] == "tests"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_module_imports_from_another(module: Path) -> None:
    assert not [name for name in imported_tests(module) if not name.startswith("tests.support")]
