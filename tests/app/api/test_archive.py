"""The tar that is made while it is sent is the one that Python's tarfile would have written."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from app.api.archive import Archive, member_header
from app.storage import StoredFile, media_type

MODIFIED = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
CONTENTS = {
    "a.txt": b"",
    "block.bin": bytes(512),
    "long/" + "n" * 150 + ".json": b"long names need a header of their own",
    "model.safetensors": bytes(range(256)) * 50,
}


def make_archive(contents: dict[str, bytes] = CONTENTS) -> Archive:
    def read(name: str, start: int, stop: int) -> Iterator[bytes]:
        yield contents[name][start:stop]

    files = [
        StoredFile(name, len(content), hashlib.sha256(content).hexdigest(), media_type(name))
        for name, content in contents.items()
    ]
    return Archive("job_1", files, MODIFIED, read)


def written_by_tarfile(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"job_1/{name}")
            member.size, member.mtime = len(content), int(MODIFIED.timestamp())
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_equals_what_tarfile_writes() -> None:
    archive = make_archive()

    assert b"".join(archive.read(0, archive.size)) == written_by_tarfile(CONTENTS)


@given(st.data())
def test_any_range_is_that_part_of_the_whole(data: st.DataObject) -> None:
    archive = make_archive()
    start = data.draw(st.integers(0, archive.size - 1))
    stop = data.draw(st.integers(start + 1, archive.size))

    assert b"".join(archive.read(start, stop)) == written_by_tarfile(CONTENTS)[start:stop]


def test_the_tag_changes_with_any_byte_of_any_file() -> None:
    assert make_archive().etag != make_archive(CONTENTS | {"block.bin": bytes(511) + b"x"}).etag


def test_files_above_eight_gibibytes_keep_their_size() -> None:
    header = member_header("job_1/model.safetensors", 9 << 30, 0)

    with tarfile.open(fileobj=io.BytesIO(header)) as tar:
        assert tar.next().size == 9 << 30
