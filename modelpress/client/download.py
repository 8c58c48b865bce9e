"""Download one artifact: resume where it broke off, verify its digest, and move it into place only when complete.

Bytes go to `NAME.<digest>.part` beside the target, so a part file is never continued with another version of the file.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx2

from modelpress.client.errors import DigestMismatch, ServiceUnreachable, UnexpectedAnswer
from modelpress.client.transport import BUSY, Patience, refusal, unreachable
from modelpress.contract.job import Artifact
from modelpress.spec.files import file_sha256, sync

ByteReport = Callable[[str, int], None]


def download_artifact(
    http: httpx2.Client,
    address: str,
    artifact: Artifact,
    directory: Path,
    *,
    patience_seconds: float,
    report: ByteReport | None = None,
) -> Path:
    """Download the artifact at `address` to `directory/artifact.name`, verify it, and return the path.

    `report(name, bytes)` is called with the size that the file has reached.

    Raises:
        DigestMismatch: the complete file has another SHA-256.
        ServiceUnreachable: no byte arrived for `patience_seconds`; the part file remains for the next try.
        UnexpectedAnswer: the artifact's name leads out of `directory`.
    """
    target = directory / safe_name(artifact.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and file_sha256(target) == artifact.sha256:
        return target
    part = target.with_name(f"{target.name}.{artifact.sha256[:12]}.part")
    fill(http, address, artifact, part, patience_seconds, report)
    if file_sha256(part) != artifact.sha256:
        part.unlink()
        raise DigestMismatch(
            f"{artifact.name} arrived with another SHA-256 than the service lists, and was deleted. Download it again."
        )
    part.replace(target)
    return target


def safe_name(name: str) -> PurePosixPath:
    """Return the artifact's name as a relative path.

    Raises:
        UnexpectedAnswer: the path leads out of the download directory.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\\" in name or "\0" in name:
        raise UnexpectedAnswer(f"the service lists a file {name!r}, which does not lie in the download directory")
    return path


def fill(
    http: httpx2.Client,
    address: str,
    artifact: Artifact,
    part: Path,
    patience_seconds: float,
    report: ByteReport | None,
) -> None:
    """Request the rest of `part` until it has the artifact's size.

    Raises:
        ServiceUnreachable: no byte arrived for `patience_seconds`.
    """
    part.touch()
    patience = Patience(patience_seconds)
    while (size := part.stat().st_size) < artifact.bytes:
        try:
            fetch(http, address, artifact, part, report)
        except httpx2.TransportError as error:
            failure = unreachable(error)
        else:
            failure = ServiceUnreachable(
                f"The download of {artifact.name} broke off at {size} of {artifact.bytes} bytes."
            )
        if part.stat().st_size > size:
            patience = Patience(patience_seconds)
        elif not patience.pause():
            raise failure


def fetch(http: httpx2.Client, address: str, artifact: Artifact, part: Path, report: ByteReport | None) -> None:
    """Make one request for the rest of the file, and append it to `part` as it arrives."""
    have = part.stat().st_size
    # A server whose tag is not the digest answers 200 with the whole file, which is taken as well.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": f'"sha256-{artifact.sha256}"'}
    with http.stream("GET", address, headers=headers) as answer:
        if answer.status_code in BUSY:
            raise httpx2.RemoteProtocolError(f"answered {answer.status_code}", request=answer.request)
        if not answer.is_success:
            answer.read()
            raise refusal(answer)
        resumed = answer.status_code == httpx2.codes.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            # No chunk size: when the connection breaks, a partly filled chunk would be lost.
            for chunk in answer.iter_raw():
                file.write(chunk)
                if report:
                    report(artifact.name, file.tell())
    sync(part)
