"""Text as a file: whatever a dataset reference means becomes one .txt or .jsonl file (see `documents`).

Only the fetching process imports this: it downloads, and it reads parquet.
"""

import itertools
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from app.errors import UnknownDataset
from app.sources import python_docs
from app.sources.documents import (
    JSON_LINES,
    LONGEST_LINE,
    Document,
    characters,
    conversation,
    is_json_lines,
    join_lines,
    read_documents,
    read_through,
    to_line,
)
from app.sources.download import Downloads, folder_name
from app.sources.hub import NotOnHub
from app.sources.text import HUB, ResolvedText, TextSources, hub_parts
from modelpress.spec.files import sync

FIELD = "dataset"
LARGEST_TEXT = 256_000_000
ROWS_LOOKED_AT = 1024
LINES_TOGETHER = 1_000_000
LONGEST_ROW = LONGEST_LINE // 2
"""Characters of a row as a line of JSON, so that rows which are joined are no line that is too long, either."""
ROWS_TOGETHER = 64
"""Rows of a parquet file that are in memory at a time: a small file can hold one large text many times."""
BUILTIN_TEXTS = {
    "builtin:python-docs": python_docs.training_documents,
    "builtin:python-docs-test": python_docs.evaluation_documents,
}


class TextFiles:
    """Kept as `builtin/NAME-VERSION.jsonl` and `ORG--NAME/COMMIT/CONFIG--SPLIT.jsonl` below `texts`; local text stays
    where it is."""

    def __init__(self, sources: TextSources, downloads: Downloads) -> None:
        self.sources = sources
        self.downloads = downloads
        self.directory = downloads.directory / "texts"

    def fetch(self, reference: str, revision: str | None = None) -> tuple[Path, str | None]:
        """Return the file of a text, and the commit it is of where it comes from the hub.

        `revision`: a commit that the text was found at before; None: the newest. A hub text of more than LARGEST_TEXT
        characters ends after that many, at the end of a document.

        Raises:
            UnknownDataset, OutsideRoots: there is no such text, or it is not text.
            HubUnavailable, DownloadCorrupted: it could not be had this time.
        """
        if reference.startswith(HUB):
            return self.fetch_hub(reference, revision)
        text = self.sources.check(reference, FIELD)
        if text.path is not None:
            check_local(reference, text.path)
            return text.path, None
        return self.write_builtin(reference), None

    def write_builtin(self, reference: str) -> Path:
        name = reference.removeprefix("builtin:")
        final = self.directory / "builtin" / f"{name}-{platform.python_version()}{JSON_LINES}"
        with self.downloads.claimed(final) as missing:
            if missing:
                write_documents(BUILTIN_TEXTS[reference](), final)
        return final

    def fetch_hub(self, reference: str, revision: str | None) -> tuple[Path, str | None]:
        if revision is not None and (final := self.place(reference, revision)).exists():
            with self.downloads.claimed(final) as missing:
                if not missing:
                    return final, revision
        text = self.downloads.patiently(lambda: self.sources.check(reference, FIELD, revision))
        final = self.place(reference, text.revision or "")
        with self.downloads.claimed(final) as missing:
            if missing:
                partial = final.with_name(f"{final.name}.partial")
                write_documents(whole_documents(self.hub_rows(text, partial)), final, LARGEST_TEXT)
                shutil.rmtree(partial)
        return final, text.revision

    def hub_rows(self, text: ResolvedText, directory: Path) -> Iterator[Document]:
        """File after file, each downloaded when the ones before it are used up."""
        for file in text.files:
            path = directory / Path(file.name).name
            try:
                if text.repository is not None:
                    self.downloads.files(text.repository, (file,), directory)
                yield from bounded(read_documents(path) if is_json_lines(path) else parquet_rows(path))
            except NotOnHub as error:
                raise UnknownDataset(FIELD, str(error)) from error
            except MemoryError as error:
                raise UnknownDataset(
                    FIELD, f"'{file.name}' of '{text.reference}' takes more memory to read than a download may use"
                ) from error
            except (pyarrow.ArrowException, KeyError) as error:
                raise UnknownDataset(
                    FIELD,
                    f"'{file.name}' of '{text.reference}' is not parquet with a column 'text' of strings or a column "
                    "'messages' of roles and contents",
                ) from error
            except UnicodeDecodeError as error:
                raise UnknownDataset(FIELD, f"'{file.name}' of '{text.reference}' is not UTF-8 text") from error
            except ValueError as error:
                raise UnknownDataset(FIELD, f"'{file.name}' of '{text.reference}' {error}") from error

    def place(self, reference: str, revision: str) -> Path:
        repository, config, split = hub_parts(reference, FIELD)
        return self.directory / folder_name(repository) / revision / f"{config or 'data'}--{split}{JSON_LINES}"


def check_local(reference: str, path: Path) -> None:
    """Read all of a file of the operator's, of which the beginning was checked when the job was posted."""
    try:
        read_through(path)
    except UnicodeDecodeError as error:
        raise UnknownDataset(FIELD, f"'{reference}' is not UTF-8 text") from error
    except ValueError as error:
        raise UnknownDataset(FIELD, f"'{reference}' {error}") from error


def bounded(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents. Raises ValueError, which completes 'the file …', for one that is too long."""
    for document in documents:
        if len(to_line(document)) > LONGEST_ROW:
            raise ValueError(f"has a document of more than {LONGEST_ROW:,} characters")
        yield document


def parquet_rows(path: Path) -> Iterator[Document]:
    """Conversations without a message are left out. Raises KeyError where there is no column 'text' or 'messages',
    ValueError for messages that are none."""
    with pyarrow.parquet.ParquetFile(path) as table:
        name = next((name for name in ("text", "messages") if name in table.schema_arrow.names), None)
        if name is None:
            raise KeyError("text")
        for batch in table.iter_batches(batch_size=ROWS_TOGETHER, columns=[name]):
            column = batch.column(0)
            if name == "text":
                yield from (text or "" for text in column.cast(pyarrow.string()).to_pylist())
            else:
                yield from (conversation(messages) for messages in column.to_pylist() if messages)


def whole_documents(rows: Iterable[Document]) -> Iterator[Document]:
    """Return the rows, joined where they are lines: a dataset with empty rows, as WikiText, is a text cut up."""
    rows = iter(rows)
    first = list(itertools.islice(rows, ROWS_LOOKED_AT))
    rows = itertools.chain(first, rows)
    if "" in first:
        return join_lines((row for row in rows if isinstance(row, str)), LINES_TOGETHER)
    return rows


def write_documents(documents: Iterable[Document], final: Path, most_characters: int | None = None) -> None:
    """Write the documents, or as many as it takes to reach `most_characters`; by one rename."""
    incomplete = final.with_name(f"{final.name}.incomplete")
    written = 0
    with incomplete.open("w", encoding="utf-8", newline="") as file:
        for document in documents:
            file.write(to_line(document))
            written += characters(document)
            if most_characters is not None and written >= most_characters:
                break
    sync(incomplete)
    incomplete.rename(final)
