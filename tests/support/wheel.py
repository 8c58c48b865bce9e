"""The wheel of this checkout, installed as a stranger installs it: its packages lie in no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.house import ROOT

SHIPPED = ("modelpress", "app", "workers", "migrations", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Installed:
    """An environment of its own that holds the wheel; the packages that it depends on are those of the tests."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def command(self) -> Path:
        """Return the script `modelpress`."""
        return self.directory / "bin" / "modelpress"

    def run(self, *command: str | Path, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a directory, with these settings and none of the caller's."""
        return subprocess.run(
            command, cwd=cwd, env=clean_environment() | settings, capture_output=True, text=True, check=False
        )

    @contextmanager
    def serving(self, cwd: Path, **settings: str) -> Iterator[str]:
        """Run `modelpress serve` in a directory, and yield its address."""
        with (cwd / "serve.log").open("w") as errors:
            process = subprocess.Popen(
                [self.command, "serve"],
                cwd=cwd,
                env=clean_environment() | {"MODELPRESS_PORT": "0"} | settings,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if line.startswith("Modelpress listens"))
            address = next((line.split()[3].rstrip(";") for line in lines), None)
            assert address, (cwd / "serve.log").read_text()
            yield address
        finally:
            process.terminate()
            process.communicate()


def clean_environment() -> dict[str, str]:
    """Return this process's environment without settings of the service and paths of imports."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MODELPRESS_", "PYTHONPATH", "PYTHONSAFEPATH"))
    }


def install_wheel(directory: Path) -> Installed:
    """Build the wheel from a copy of the checkout, and install it into an environment in `directory`."""
    source, environment = directory / "source", directory / "environment"
    source.mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(directory)]
    run(*pip, "wheel", *options, str(source))
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    (wheel,) = directory.glob("*.whl")
    run(*pip, "--python", str(environment / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    # A directory that a .pth file names is not searched for further ones, so the checkout stays out of the path.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return Installed(environment)


def run(*command: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
