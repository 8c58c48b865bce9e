"""Downloading one artifact: resumed where it broke off, checked by its digest, in place only when whole.

Bytes go to `NAME.<digest>.part` beside the target, so a part file never meets a different version of the file.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx2

from app.client.errors import DigestMismatch, ServiceUnreachable, UnexpectedAnswer
from app.client.transport import BUSY, Patience, refusal, unreachable
from app.contract.job import Artifact
from workers.compression.spec.files import file_sha256, sync

ByteReport = Callable[[str, int], None]


def download_artifact(
    http: httpx2.Client,
    artifact: Artifact,
    directory: Path,
    *,
    patience_seconds: float,
    report: ByteReport | None = None,
) -> Path:
    """The file `directory/artifact.name`, bit for bit as packaged.

    Raises DigestMismatch when a complete download has another SHA-256, and ServiceUnreachable when nothing more
    arrives for `patience_seconds`; the part file then waits for the next try.
    """
    target = directory / safe_name(artifact.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and file_sha256(target) == artifact.sha256:
        return target
    part = target.with_name(f"{target.name}.{artifact.sha256[:12]}.part")
    fill(http, artifact, part, patience_seconds, report)
    if file_sha256(part) != artifact.sha256:
        part.unlink()
        raise DigestMismatch(
            f"{artifact.name} arrived with another SHA-256 than the service packaged, and was thrown away. "
            "Download it again."
        )
    part.replace(target)
    return target


def safe_name(name: str) -> PurePosixPath:
    """The name as a path below the download directory. Raises UnexpectedAnswer where it leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\\" in name or "\0" in name:
        raise UnexpectedAnswer(f"the service names a file {name!r}, which does not lie in the download directory")
    return path


def fill(
    http: httpx2.Client, artifact: Artifact, part: Path, patience_seconds: float, report: ByteReport | None
) -> None:
    """Requests what `part` lacks until it has the artifact's size. Every byte that arrives renews the patience."""
    part.touch()
    patience = Patience(patience_seconds)
    while (size := part.stat().st_size) < artifact.bytes:
        try:
            fetch(http, artifact, part, report)
        except httpx2.TransportError as error:
            failure = unreachable(error)
        else:
            failure = ServiceUnreachable(f"{artifact.name} ended at {size} of {artifact.bytes} bytes.")
        if part.stat().st_size > size:
            patience = Patience(patience_seconds)
        elif not patience.pause():
            raise failure


def fetch(http: httpx2.Client, artifact: Artifact, part: Path, report: ByteReport | None) -> None:
    """One request for the rest of the file, appended to `part` as it arrives."""
    have = part.stat().st_size
    # A server whose tag is not the digest answers 200 with the whole file, which is taken as well.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": f'"sha256-{artifact.sha256}"'}
    with http.stream("GET", artifact.href, headers=headers) as answer:
        if answer.status_code in BUSY:
            raise httpx2.RemoteProtocolError(f"answered {answer.status_code}", request=answer.request)
        if not answer.is_success:
            answer.read()
            raise refusal(answer)
        resumed = answer.status_code == httpx2.codes.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            # Without a chunk size: larger chunks would be lost half filled when the connection breaks.
            for chunk in answer.iter_raw():
                file.write(chunk)
                if report:
                    report(artifact.name, file.tell())
    sync(part)
