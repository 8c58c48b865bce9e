"""Published files in an object store: `<prefix>/<job_id>/<attempt>/<name>`, beside a manifest that is written last.

An attempt is published once its manifest is there, so what has one is complete, also after a crash at any moment. The
store's credentials, endpoint and region come from its own environment variables, such as AWS_ACCESS_KEY_ID and
AWS_ENDPOINT_URL.
"""

import json
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from app.errors import ArtifactNotFound, StorageUnavailable
from app.storage import Chunks, InvalidNameError, StoredFile, check_name, list_names, media_type
from modelpress.spec.files import file_sha256

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

MANIFEST = ".manifest.json"
OWNER = ".database"
ASIDE = ".quarantine"
MARK = "set-aside"
PART_BYTES = 16 << 20
CHUNK_BYTES = 1 << 18
SIGNING = (S3Store, GCSStore, AzureStore)
CLIENT: "Final[ClientConfig]" = {
    "allow_http": True,
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=60),
}
READING: "Final[RetryConfig]" = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}
"""While a client waits."""
WRITING: "Final[RetryConfig]" = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}


class ObjectStorage:
    """A `Storage` in a bucket, so that API and workers share no disk."""

    def __init__(self, reading: ObjectStore, writing: ObjectStore) -> None:
        """Take the same place twice: for what a client waits for, and for what a worker does."""
        self.reading = reading
        self.writing = writing

    @classmethod
    def at(cls, url: str) -> Self:
        """Return the storage of a URL such as `s3://bucket/prefix`."""
        reading = from_url(url, client_options=CLIENT, retry_config=READING)
        return cls(reading, from_url(url, client_options=CLIENT, retry_config=WRITING))

    def publish(self, job_id: str, attempt: int, directory: Path) -> tuple[StoredFile, ...]:
        place = place_of(job_id, attempt)
        with translated():
            if (published := self.manifest(place)) is None:
                published = self.upload(place, directory)
        shutil.rmtree(directory, ignore_errors=True)
        return published

    def upload(self, place: str, directory: Path) -> tuple[StoredFile, ...]:
        """Put every file into the store, and then the manifest, by which they become visible."""
        if not directory.is_dir():
            raise FileNotFoundError(f"there is no directory {directory}")
        files = tuple(describe(directory, name) for name in list_names(directory))
        for file in files:
            # In parts, several at a time; each carries a checksum, and what fails is sent again.
            obstore.put(self.writing, f"{place}/{file.name}", directory / file.name, chunk_size=PART_BYTES)
            if (stored := obstore.head(self.writing, f"{place}/{file.name}")["size"]) != file.bytes:
                raise StorageUnavailable(f"the store has {stored} bytes of {file.name}, and was sent {file.bytes}")
        manifest = json.dumps({"files": [asdict(file) for file in files]}, indent=1)
        obstore.put(self.writing, f"{place}/{MANIFEST}", manifest.encode())
        return files

    def manifest(self, place: str) -> tuple[StoredFile, ...] | None:
        """Return the files of a published attempt; None where it is not published."""
        try:
            content = obstore.get(self.writing, f"{place}/{MANIFEST}").bytes()
        except FileNotFoundError:
            return None
        return tuple(StoredFile(**entry) for entry in json.loads(bytes(content))["files"])

    def exists(self, job_id: str, attempt: int, name: str) -> bool:
        try:
            place = place_of(job_id, attempt)
            path = f"{place}/{check_name(name)}"
        except InvalidNameError:
            return False
        with translated():
            try:
                obstore.head(self.reading, f"{place}/{MANIFEST}")
                obstore.head(self.reading, path)
            except FileNotFoundError:
                return False
        return True

    def open(self, job_id: str, attempt: int, name: str, start: int, stop: int) -> Chunks:
        with translated():
            try:
                place = place_of(job_id, attempt)
                obstore.head(self.reading, f"{place}/{MANIFEST}")
                if start >= stop:
                    return read(())
                # Asked for here and not at the first chunk, so that discarding it does not disturb the reader.
                content = obstore.get(self.reading, f"{place}/{check_name(name)}", options={"range": (start, stop)})
            except (FileNotFoundError, InvalidNameError):
                raise ArtifactNotFound(f"there is no file {name!r} of this job") from None
        return read(content.stream(min_chunk_size=CHUNK_BYTES))

    def link(self, job_id: str, attempt: int, name: str, seconds: float) -> str | None:
        if not isinstance(self.reading, SIGNING):
            return None
        path = f"{place_of(job_id, attempt)}/{check_name(name)}"
        return obstore.sign(self.reading, "GET", path, timedelta(seconds=seconds))

    def attempts(self) -> list[tuple[str, int]]:
        with translated():
            paths = [entry["path"].split("/") for page in obstore.list(self.writing) for entry in page]
        aside = {(parts[1], parts[2]) for parts in paths if parts[0] == ASIDE and len(parts) > 2}
        found = {(parts[0], parts[1]) for parts in paths if len(parts) > 2 and not parts[0].startswith(".")}
        return sorted((job, int(attempt)) for job, attempt in found - aside if attempt.isdecimal())

    def discard(self, job_id: str, attempt: int) -> None:
        place = place_of(job_id, attempt)
        with translated():
            paths = [entry["path"] for page in obstore.list(self.writing, place) for entry in page]
            # The manifest first: without it nothing of the attempt is visible.
            for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST}")):
                obstore.delete(self.writing, path)

    def set_aside(self, job_id: str, attempt: int) -> None:
        place = place_of(job_id, attempt)
        with translated():
            # The files stay where they are: without its manifest an attempt is out of sight, and no byte is moved.
            obstore.put(self.writing, f"{ASIDE}/{place}/{MARK}", b"")
            with suppress(FileNotFoundError):
                obstore.copy(self.writing, f"{place}/{MANIFEST}", f"{ASIDE}/{place}/{MANIFEST}")
                obstore.delete(self.writing, f"{place}/{MANIFEST}")

    def owner(self, identity: str) -> str:
        with translated():
            try:
                obstore.put(self.writing, OWNER, identity.encode(), mode="create")
            except AlreadyExistsError:
                return bytes(obstore.get(self.writing, OWNER).bytes()).decode()
        return identity


def place_of(job_id: str, attempt: int) -> str:
    """Return where the files of an attempt lie. Raises InvalidNameError for a job id that leads elsewhere."""
    if "/" in check_name(job_id):
        raise InvalidNameError("a job id has one part")
    return f"{job_id}/{int(attempt)}"


def describe(directory: Path, name: str) -> StoredFile:
    """Return size and digest of a file."""
    path = directory / name
    return StoredFile(name, path.stat().st_size, file_sha256(path), media_type(name))


def read(chunks: Iterable[Any]) -> Generator[bytes]:
    """Yield the chunks of a download. Raises StorageUnavailable where the store breaks off."""
    with translated():
        for chunk in chunks:
            yield bytes(chunk)


@contextmanager
def translated() -> Iterator[None]:
    """Raise StorageUnavailable where the store cannot be reached or refuses; what it says names no secret."""
    try:
        yield
    except BaseError as error:
        raise StorageUnavailable(f"the object store failed: {type(error).__name__}") from error
