"""A storage backend in this process's memory: the smallest one there can be, to show what adding one takes."""

import hashlib
import shutil
from pathlib import Path
from typing import Self

from app.errors import ArtifactNotFound
from app.storage import Chunks, InvalidNameError, StoredFile, check_name, media_type


class MemoryStorage:
    def __init__(self) -> None:
        self.contents: dict[tuple[str, int], dict[str, bytes]] = {}
        self.aside: dict[tuple[str, int], dict[str, bytes]] = {}
        self.identity: str | None = None

    @classmethod
    def at(cls, url: str) -> Self:
        return cls()

    def publish(self, job_id: str, attempt: int, directory: Path) -> tuple[StoredFile, ...]:
        if "/" in check_name(job_id):
            raise InvalidNameError("a job id has one part")
        if (job_id, attempt) not in self.contents:
            self.contents[job_id, attempt] = read_files(directory)
        shutil.rmtree(directory, ignore_errors=True)
        return tuple(
            StoredFile(name, len(content), hashlib.sha256(content).hexdigest(), media_type(name))
            for name, content in sorted(self.contents[job_id, attempt].items())
        )

    def exists(self, job_id: str, attempt: int, name: str) -> bool:
        return name in self.contents.get((job_id, attempt), {})

    def open(self, job_id: str, attempt: int, name: str, start: int, stop: int) -> Chunks:
        if not self.exists(job_id, attempt, name):
            raise ArtifactNotFound(f"there is no file {name!r} of this job")
        return (chunk for chunk in [self.contents[job_id, attempt][name][start:stop]])

    def link(self, job_id: str, attempt: int, name: str, seconds: float) -> str | None:
        return None

    def attempts(self) -> list[tuple[str, int]]:
        return sorted(self.contents)

    def discard(self, job_id: str, attempt: int) -> None:
        self.contents.pop((job_id, attempt), None)

    def set_aside(self, job_id: str, attempt: int) -> None:
        if (job_id, attempt) in self.contents:
            self.aside[job_id, attempt] = self.contents.pop((job_id, attempt))

    def owner(self, identity: str) -> str:
        self.identity = self.identity or identity
        return self.identity


def read_files(directory: Path) -> dict[str, bytes]:
    if not directory.is_dir():
        raise FileNotFoundError(directory)
    paths = [path for path in directory.rglob("*") if not path.is_dir()]
    if any(path.is_symlink() for path in paths):
        raise InvalidNameError("a link is not a regular file")
    return {check_name(path.relative_to(directory).as_posix()): path.read_bytes() for path in paths}
