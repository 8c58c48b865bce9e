"""Limits that keep the code readable: the length of a module, and the parameters of a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("modelpress", "app", "workers", "migrations", "demo", "bench", "docs", "docker")
MODULES = [
    path.relative_to(ROOT) for package in (*PACKAGES, "tests") for path in sorted((ROOT / package).rglob("*.py"))
]
LINES, PARAMETERS = 400, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(module: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def is_route(function: Function) -> bool:
    """Return whether the parameters are those of a request, which nobody passes by hand."""
    return any(ast.unparse(decorator).startswith("router.") for decorator in function.decorator_list)


def parameters(function: Function) -> list[str]:
    """Return the names of the parameters, but for `self` and `cls`."""
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def test_no_module_is_too_long() -> None:
    lengths = {str(module): len((ROOT / module).read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_function_has_too_many_parameters(package: str) -> None:
    wide = [
        f"{module}: {function.name}"
        for module in MODULES
        if module.parts[0] == package
        for function in public_functions(module)
        if len(parameters(function)) > PARAMETERS and not is_route(function)
    ]
    assert wide == []
