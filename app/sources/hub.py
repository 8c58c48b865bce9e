"""What is asked of a model hub: a repository at a commit, its files with sizes and digests, and bytes of them.

Every request has a timeout and none is repeated here: whoever waits for an answer to POST must not wait for minutes.
The token is sent to the hub alone (a redirect to another host loses it) and never appears in a message.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pydantic import SecretStr

from app.errors import HubUnavailable

Kind = Literal["model", "dataset"]

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST_REPOSITORY = 96
READ_SECONDS = 10.0
HUB_SECONDS = 1.5
"""For how long the hub may say nothing while a client of ours waits."""


class NotOnHub(LookupError):
    """The hub answers, and does not have it for us. The message says what to do."""


@dataclass(frozen=True)
class RemoteFile:
    name: str
    bytes: int
    sha256: str | None
    """Digest of the content; the hub knows it for large files."""
    blob: str | None
    """Git's object id of the content; for files without a SHA-256."""


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    kind: Kind
    name: str
    revision: str
    files: tuple[RemoteFile, ...]

    def file(self, name: str) -> RemoteFile | None:
        return next((file for file in self.files if file.name == name), None)


class Hub:
    def __init__(self, endpoint: str, token: SecretStr | None, timeout_seconds: float) -> None:
        """`timeout_seconds` limits a connection, and each wait for bytes."""
        self.endpoint = endpoint.rstrip("/")
        self.host = urlsplit(self.endpoint).hostname or "unknown"
        self.token = token
        self.timeout = httpx2.Timeout(timeout_seconds)

    def repository(self, kind: Kind, name: str, revision: str | None = None) -> Repository:
        """Return the repository at a branch, tag or commit; None is its default branch.

        Raises:
            NotOnHub: it does not exist, or not for our token, or has no such revision.
            HubUnavailable: no usable answer within the timeout.
        """
        check_names(name, revision)
        api = HfApi(endpoint=self.endpoint, token=self.secret())
        ask = api.model_info if kind == "model" else api.dataset_info
        seconds = self.timeout.read
        try:
            with self.explained(name, revision):
                info = ask(name, revision=revision, files_metadata=True, timeout=seconds)
        except (ValueError, TypeError, KeyError) as error:
            raise HubUnavailable(f"What answers at {self.host} does not speak the hub's protocol.") from error
        if info.sha is None or not COMMIT.fullmatch(info.sha):
            raise HubUnavailable(f"The hub at {self.host} does not say which commit '{name}' is at.")
        files = (
            RemoteFile(
                name=sibling.rfilename,
                bytes=sibling.size or 0,
                sha256=sibling.lfs.sha256 if sibling.lfs else None,
                blob=None if sibling.lfs else sibling.blob_id,
            )
            for sibling in info.siblings or ()
        )
        return Repository(kind, name, info.sha, tuple(files))

    def read(self, repository: Repository, file: RemoteFile, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file, fewer where the file ends before; for small parts, within READ_SECONDS."""
        end = min(end, file.bytes)
        if start >= end:
            return b""
        give_up = time.monotonic() + READ_SECONDS
        content = bytearray()
        with self.stream(repository, file, start, end) as chunks:
            for chunk in chunks:
                content += chunk
                if time.monotonic() > give_up:
                    raise HubUnavailable(f"The hub at {self.host} sends '{file.name}' too slowly; try again later.")
        return bytes(content)

    @contextmanager
    def stream(self, repository: Repository, file: RemoteFile, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Yield the bytes from `start` to `end` and no more, in chunks, also from a server that ignores ranges."""
        url = hf_hub_url(
            repository.name,
            file.name,
            repo_type=repository.kind,
            revision=repository.revision,
            endpoint=self.endpoint,
        )
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}", "User-Agent": "modelpress"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token.get_secret_value()}"
        with (
            self.explained(repository.name, repository.revision),
            get_session().stream("GET", url, headers=headers, timeout=self.timeout) as response,
        ):
            hf_raise_for_status(response)
            whole = response.status_code != httpx2.codes.PARTIAL_CONTENT
            yield part(response.iter_bytes(), start if whole else 0, end - start)

    def secret(self) -> str | Literal[False]:
        """False, not None: None would let the library look for a token of the machine's user."""
        return self.token.get_secret_value() if self.token else False

    @contextmanager
    def explained(self, name: str, revision: str | None) -> Iterator[None]:
        """Turn what the library raises into what a client can be told."""
        try:
            yield
        except GatedRepoError as error:
            raise NotOnHub(
                f"'{name}' is gated: accept its terms at {self.host} and give the service a token that may read it "
                "(MODELPRESS_HUB_TOKEN)"
            ) from error
        except RevisionNotFoundError as error:
            raise NotOnHub(f"'{name}' has no revision '{revision}'; send a branch, a tag or a commit of it") from error
        except RemoteEntryNotFoundError as error:
            raise NotOnHub(f"'{name}' lacks a file that it lists; try again, or another revision") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise NotOnHub(self.unseen(name)) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN, httpx2.codes.NOT_FOUND):
                raise NotOnHub(self.unseen(name)) from error
            raise HubUnavailable(f"The hub at {self.host} answered with status {status}; try again later.") from error
        except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
            raise HubUnavailable(
                f"The hub at {self.host} could not be reached; try again later, or use a 'local:' reference."
            ) from error

    def unseen(self, name: str) -> str:
        return (
            f"{self.host} has no '{name}' that this service may see; check the name, and for a private repository "
            "set MODELPRESS_HUB_TOKEN"
        )


def check_names(name: str, revision: str | None) -> None:
    if len(name) > LONGEST_REPOSITORY or ".." in name or "--" in name or not REPOSITORY.fullmatch(name):
        raise NotOnHub("that is not the name of a repository on the hub; send 'org/name'")
    if revision is not None and (".." in revision or not REVISION.fullmatch(revision)):
        raise NotOnHub("that is not a revision; send a branch, a tag or a commit after the '@'")


def part(chunks: Iterator[bytes], skipped: int, wanted: int) -> Iterator[bytes]:
    """`wanted` bytes after the first `skipped` ones."""
    for chunk in chunks:
        kept = chunk[skipped : skipped + wanted]
        skipped = max(0, skipped - len(chunk))
        wanted -= len(kept)
        if kept:
            yield kept
        if not wanted:
            return
