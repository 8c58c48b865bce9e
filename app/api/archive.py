"""All files of a job as one tar, generated while it is sent.

The layout of an uncompressed tar follows from names and sizes alone. So its length and entity tag are known before a
byte is read, nothing is held in memory or in a temporary file, and a download can resume at any position.
"""

import hashlib
import tarfile
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from app.storage import Chunks, StoredFile

Read = Callable[[str, int, int], Chunks]


@dataclass(frozen=True)
class Segment:
    """A range of the archive: literal bytes, or the content of the file with this name."""

    size: int
    content: bytes | str


class Archive:
    """An uncompressed tar whose size, entity tag and bytes at any position are known without building it."""

    def __init__(self, folder: str, files: Sequence[StoredFile], modified: datetime, read: Read) -> None:
        """Lay out the archive.

        Args:
            folder: directory that the archive unpacks to.
            files: the files in the archive, in order.
            modified: modification time of every file.
            read: `read(name, start, stop)` yields a range of a file's bytes.
        """
        self._read = read
        self._segments = lay_out(folder, files, int(modified.timestamp()))
        self._starts = list(accumulate((segment.size for segment in self._segments), initial=0))
        self.size = self._starts[-1]
        self.etag = f'"tar-{identity(self._segments, files)}"'

    def read(self, start: int, stop: int) -> Generator[bytes]:
        """Yield the bytes from `start` up to, not including, `stop`."""
        for begin, segment in zip(self._starts, self._segments, strict=False):
            first, last = max(start - begin, 0), min(stop - begin, segment.size)
            if first >= last:
                continue
            if isinstance(segment.content, bytes):
                yield segment.content[first:last]
            else:
                with closing(self._read(segment.content, first, last)) as chunks:
                    yield from chunks


def lay_out(folder: str, files: Sequence[StoredFile], modified: int) -> list[Segment]:
    """Return the segments of the archive: header, content and padding of each file, then the end of the tar."""
    segments = []
    for file in files:
        header = member_header(f"{folder}/{file.name}", file.bytes, modified)
        padding = bytes(-file.bytes % tarfile.BLOCKSIZE)
        segments += [Segment(len(header), header), Segment(file.bytes, file.name), Segment(len(padding), padding)]
    used = sum(segment.size for segment in segments)
    end = 2 * tarfile.BLOCKSIZE
    end += -(used + end) % tarfile.RECORDSIZE
    return [*segments, Segment(end, bytes(end))]


def member_header(name: str, size: int, modified: int) -> bytes:
    """Return the tar header of one file, in the pax format."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = modified
    return member.tobuf(tarfile.PAX_FORMAT)


def identity(segments: Sequence[Segment], files: Sequence[StoredFile]) -> str:
    """Return a hash of everything that determines the archive's bytes."""
    digest = hashlib.sha256()
    for segment in segments:
        if isinstance(segment.content, bytes):
            digest.update(segment.content)
    for file in files:
        digest.update(bytes.fromhex(file.sha256))
    return digest.hexdigest()
