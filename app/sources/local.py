"""Files of the operator: a client's `local:NAME` becomes a path that certainly lies under an allowed directory.

Messages repeat the client's own NAME and never a path of the server.
"""

from pathlib import Path, PurePosixPath

from app.errors import OutsideRoots
from modelpress.errors import Refused

LONGEST_NAME = 512


def locate(name: str, roots: tuple[Path, ...], *, field: str, unknown: type[Refused], setting: str) -> Path:
    """Return the file or directory called `name` under the first root that has it, symbolic links resolved.

    `setting` is the variable that names the roots, for the way out in the message.

    Raises:
        OutsideRoots: the name leads out of every root: it is absolute, has a `..`, or is a symbolic link.
        unknown: nothing is found.
    """
    shown = name if len(name) <= 80 else f"{name[:80]}…"
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise unknown(field, f"send a name of 1 to {LONGEST_NAME} printable characters after 'local:'")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise OutsideRoots(field, f"'{shown}' must be a relative path without '..', below a directory of {setting}")
    if not roots:
        raise unknown(field, f"no directory of local files is allowed: the operator has not set {setting}")
    found = [path for root in roots if (path := resolved(root / name)) is not None]
    for path in found:
        if any(path.is_relative_to(root) for root in roots):
            return path
    if found:
        raise OutsideRoots(
            field, f"'{shown}' is a link that leads out of the directories of {setting}; put a copy there"
        )
    raise unknown(
        field,
        f"there is no '{shown}' in the directories of {setting}; check the name against "
        f"GET /{'models' if field == 'model' else 'datasets'}",
    )


def resolved(path: Path) -> Path | None:
    """Return the real path of what `path` names; None where nothing readable is there."""
    try:
        return path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # too long, NUL or lone surrogate, a loop of links
        return None
