"""What was fetched and has not been used for long: a model, a text, or the beginning of one.

What is made from the hub lies in a directory of its own kind, each beside a lock that is held while it is made, marked
as used, or deleted. Its time of modification says when a job has last used it.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOCK, PARTIAL, INCOMPLETE, ASIDE = ".lock", ".partial", ".incomplete", ".unused"


@dataclass(frozen=True)
class Kept:
    """Something that was fetched, with what there is of it that is not whole, and the seconds since its last use."""

    final: Path
    age_seconds: float


def lock_of(final: Path) -> Path:
    """Return the file that is locked while `final` is made or deleted."""
    return final.with_name(f"{final.name}{LOCK}")


def kept(directory: Path) -> Iterator[Kept]:
    """Yield everything that was fetched into a directory."""
    for lock in directory.rglob(f"*{LOCK}"):
        final = lock.with_name(lock.name.removesuffix(LOCK))
        if (age := age_of(final)) is not None:
            yield Kept(final, age)


def age_of(final: Path) -> float | None:
    """Return the seconds since something was last used or written to; None where nothing is there."""
    files = [final, *(path for part in parts_of(final) for path in (part, *part.rglob("*")))]
    times = [path.stat().st_mtime for path in files if path.exists()]
    return time.time() - max(times) if times else None


def parts_of(final: Path) -> tuple[Path, ...]:
    """Return where what is not whole of `final` may lie."""
    return tuple(final.with_name(f"{final.name}{suffix}") for suffix in (PARTIAL, INCOMPLETE, ASIDE))


def delete(final: Path, age_seconds: float) -> bool:
    """Delete what was fetched, unless it was used within `age_seconds` or is being made; return whether it is gone."""
    with lock_of(final).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if (age := age_of(final)) is None or age < age_seconds:
            return False
        aside = final.with_name(f"{final.name}{ASIDE}")
        remove(aside)
        if final.exists():
            final.rename(aside)
        for part in parts_of(final):
            remove(part)
    return True


def remove(path: Path) -> None:
    """Delete a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
