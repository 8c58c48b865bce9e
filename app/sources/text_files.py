"""Text as a file: whatever a dataset reference means becomes one UTF-8 file, documents separated by blank lines.

Only the fetching process imports this: it downloads, and it reads parquet.
"""

import hashlib
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from app.errors import UnknownDataset
from app.sources import python_docs
from app.sources.download import READ_BYTES, Downloads, digest, folder_name
from app.sources.hub import NotOnHub
from app.sources.text import HUB, ResolvedText, TextSources, document_of, hub_parts

FIELD = "dataset"
BETWEEN = "\n\n"
LARGEST_TEXT = 256_000_000
BUILTIN_TEXTS = {
    "builtin:python-docs": python_docs.training_text,
    "builtin:python-docs-test": python_docs.evaluation_text,
}


class TextFiles:
    """Kept as `builtin/NAME-VERSION.txt`, `local/SHA256.txt` and `ORG--NAME/COMMIT/CONFIG--SPLIT.txt` below `texts`."""

    def __init__(self, sources: TextSources, downloads: Downloads) -> None:
        self.sources = sources
        self.downloads = downloads
        self.directory = downloads.directory / "texts"

    def fetch(self, reference: str, revision: str | None = None) -> tuple[Path, str | None]:
        """The file of a text, and the commit it is of where it comes from the hub.

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
            return self.open_local(reference, text.path), None
        return self.write_builtin(reference), None

    def write_builtin(self, reference: str) -> Path:
        name = reference.removeprefix("builtin:")
        final = self.directory / "builtin" / f"{name}-{platform.python_version()}.txt"
        with self.downloads.claimed(final) as missing:
            if missing:
                write_documents([BUILTIN_TEXTS[reference]()], final)
        return final

    def open_local(self, reference: str, path: Path) -> Path:
        """The operator's own .txt file; of a .jsonl file the texts, kept under the digest of the file."""
        try:
            if path.suffix == ".txt":
                check_utf8(path)
                return path
            final = self.directory / "local" / f"{digest(path, hashlib.sha256())}.txt"
            with self.downloads.claimed(final) as missing, path.open(encoding="utf-8") as lines:
                if missing:
                    write_documents((document_of(line) for line in lines if line.strip()), final)
        except UnicodeDecodeError as error:
            raise UnknownDataset(FIELD, f"'{reference}' is not UTF-8 text") from error
        except ValueError as error:
            raise UnknownDataset(FIELD, f"'{reference}' {error} in one of its lines") from error
        return final

    def fetch_hub(self, reference: str, revision: str | None) -> tuple[Path, str | None]:
        if revision is not None and (final := self.place(reference, revision)).exists():
            return final, revision
        text = self.downloads.patiently(lambda: self.sources.check(reference, FIELD, revision))
        final = self.place(reference, text.revision or "")
        with self.downloads.claimed(final) as missing:
            if missing:
                partial = final.with_name(f"{final.name}.partial")
                write_documents(self.hub_documents(text, partial), final, LARGEST_TEXT)
                shutil.rmtree(partial)
        return final, text.revision

    def hub_documents(self, text: ResolvedText, directory: Path) -> Iterator[str]:
        """File after file, each downloaded when the ones before it are used up."""
        for file in text.files:
            try:
                if text.repository is not None:
                    self.downloads.files(text.repository, (file,), directory)
                yield from column_of(directory / Path(file.name).name)
            except NotOnHub as error:
                raise UnknownDataset(FIELD, str(error)) from error
            except (pyarrow.ArrowException, KeyError) as error:
                raise UnknownDataset(
                    FIELD, f"'{file.name}' of '{text.reference}' is not parquet with a column 'text' of strings"
                ) from error

    def place(self, reference: str, revision: str) -> Path:
        repository, config, split = hub_parts(reference, FIELD)
        return self.directory / folder_name(repository) / revision / f"{config or 'data'}--{split}.txt"


def column_of(path: Path) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(path) as table:
        if "text" not in table.schema_arrow.names:
            raise KeyError("text")
        for batch in table.iter_batches(batch_size=1024, columns=["text"]):
            for value in batch.column(0).cast(pyarrow.string()):
                yield value.as_py() or ""


def write_documents(documents: Iterable[str], final: Path, most_characters: int | None = None) -> None:
    """All of the documents, or as many as it takes to reach `most_characters`; by one rename."""
    incomplete = final.with_name(f"{final.name}.incomplete")
    written = 0
    with incomplete.open("w", encoding="utf-8", newline="") as file:
        for document in documents:
            file.write(BETWEEN + document if written else document)
            written += len(document) + len(BETWEEN)
            if most_characters is not None and written >= most_characters:
                break
        file.flush()
        os.fsync(file.fileno())
    incomplete.rename(final)


def check_utf8(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        while file.read(READ_BYTES):
            pass
