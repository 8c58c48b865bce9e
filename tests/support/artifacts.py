"""A directory of files to publish."""

from pathlib import Path

CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5000, "plots/loss.svg": b"<svg/>"}


def write_files_of_package(directory: Path) -> Path:
    """Write CONTENTS into a new directory, and return it."""
    for name, content in CONTENTS.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory
