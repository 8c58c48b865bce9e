"""Directories, passwords and socket addresses that no other user can read."""

import os
import secrets
import socket
from pathlib import Path

from app.embedded.errors import EmbeddedServerError

SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux and 104 on macOS, with the closing zero


def private_directory(path: Path) -> Path:
    """Create a directory that only this user may enter, and return it.

    Raises:
        EmbeddedServerError: the directory exists and belongs to another user.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.geteuid():
        raise EmbeddedServerError(
            f"{path} belongs to another user. Run Modelpress as that user, "
            "or set MODELPRESS_DATA_DIR to another directory."
        )
    path.chmod(0o700)
    return path


def stored_password(path: Path) -> str:
    """Return the password in the file, creating a random one on first use.

    It has 64 hexadecimal digits, so it needs no quoting.
    """
    if not path.exists():
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    return path.read_text()


def fits_a_socket(path: Path) -> bool:
    """Return whether `path` is short enough for a Unix socket."""
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES


def free_port() -> int:
    """Return a TCP port of the loopback interface on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
