"""A directory of files to publish."""

from pathlib import Path

import pytest

CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5000, "plots/loss.svg": b"<svg/>"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package")


def write_package(directory: Path) -> Path:
    for name, content in CONTENTS.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory
