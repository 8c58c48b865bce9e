"""Send a file of text in pieces, and go on where it broke off."""

from pathlib import Path
from typing import Any

import httpx2

from modelpress.client.errors import ProblemError
from modelpress.client.transport import Patience, is_busy, parse, unreachable
from modelpress.contract.upload import TextFormat, Upload, UploadRequest
from modelpress.spec.files import file_sha256

PIECE_BYTES = 1 << 24
PIECE_SECONDS = 600.0
"""How long the service may take to check and store a file whose last piece has arrived."""


def announcement(path: Path, name: str | None) -> UploadRequest:
    """Return what announces a file; one whose name ends in .jsonl holds a document a line."""
    kind = TextFormat.JSONL if path.suffix.lower() == ".jsonl" else TextFormat.TXT
    return UploadRequest(name=name or path.name, format=kind, bytes=path.stat().st_size, sha256=file_sha256(path))


def send_pieces(http: httpx2.Client, upload: Upload, path: Path, patience_seconds: float) -> Upload:
    """Send what has not arrived, and return the upload once it is complete.

    Raises:
        ServiceUnreachable: no piece arrived for `patience_seconds`.
        ProblemError: the service refuses the file.
    """
    patience, address = Patience(patience_seconds), f"/uploads/{upload.id}"
    with path.open("rb") as file:
        while upload.completed_at is None:
            file.seek(upload.received)
            headers = {"Upload-Offset": str(upload.received), "Content-Type": "application/octet-stream"}
            options: dict[str, Any] = {"headers": headers, "timeout": httpx2.Timeout(PIECE_SECONDS, connect=5.0)}
            try:
                answer = http.patch(address, content=file.read(PIECE_BYTES), **options)
                if answer.status_code == httpx2.codes.CONFLICT or is_busy(answer):
                    raise httpx2.RemoteProtocolError(f"answered {answer.status_code}", request=answer.request)
                sent = parse(Upload, answer)
            except httpx2.TransportError as error:
                if not patience.pause():
                    raise unreachable(error) from error
                sent = state_of(http, address, upload)
            if sent.received > upload.received:
                patience = Patience(patience_seconds)
            upload = sent
    return upload


def state_of(http: httpx2.Client, address: str, upload: Upload) -> Upload:
    """Return how much of an upload has arrived; what was known, where the service does not say."""
    try:
        answer = http.get(address)
    except httpx2.TransportError:
        return upload
    try:
        return parse(Upload, answer)
    except ProblemError:
        if is_busy(answer):
            return upload
        raise
