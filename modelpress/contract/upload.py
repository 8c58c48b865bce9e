"""Text that a team brings along: a file is announced, sent piece by piece, and then named in recipes by its id."""

import re
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from modelpress.contract.job import Answer

UPLOAD = re.compile(r"upload_[0-9a-f]{24}")


class TextFormat(StrEnum):
    """The formats in which a file of text can be uploaded."""

    TXT = "txt"
    """One document."""
    JSONL = "jsonl"
    """A document a line: `{"text": …}`, or the `{"messages": …}` of a conversation."""


class UploadRequest(BaseModel):
    """The body of `POST /uploads`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$", description="what the list shows it as")
    format: TextFormat
    bytes: int = Field(ge=1, lt=2**63, description="size of the file")
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="digest of the file, in hexadecimal; what arrives is held to it, and what has arrived of it before "
        "need not be sent again",
    )


class Upload(Answer):
    """A file of text of the team."""

    id: str = Field(description="a recipe names it as a dataset by this")
    name: str
    format: TextFormat
    bytes: int
    received: int = Field(description="how many bytes have arrived; the next piece begins there")
    sha256: str | None = None
    created_at: datetime
    completed_at: datetime | None = Field(None, description="when it was there as a whole, so that recipes can name it")


class UploadList(Answer):
    """One page of the team's files, newest first."""

    uploads: tuple[Upload, ...]
    next: str | None = Field(None, description="send as ?after= for the next page; null on the last one")
