"""Text as documents: a .txt file is one, a .jsonl file holds one a line, either `{"text": …}` or the `{"messages": …}`
of a conversation.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

JSON_LINES = ".jsonl"
LONGEST_LINE = 16 * 2**20
"""Characters of a document in a .jsonl file: reading one takes several times its size in memory."""
READ_CHARACTERS = 2**20
JSON_LINES_ENCODING = "utf-8-sig"
"""Windows programs begin a file with a byte order mark, which is no part of its first line."""


class Message(TypedDict):
    role: str
    content: str


Document = str | Sequence[Message]
"""Plain text, or a conversation, which a model's chat template turns into text."""


def read_documents(path: Path) -> Iterator[Document]:
    """Return the documents of a file. Raises ValueError, which completes 'the file …' and names the line."""
    if not is_json_lines(path):
        yield path.read_text(encoding="utf-8")
        return
    with path.open(encoding=JSON_LINES_ENCODING) as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), ""), 1):
            if len(line) > LONGEST_LINE:
                raise ValueError(f"has more than {LONGEST_LINE:,} characters in line {number}; split its document")
            if line.strip():
                yield parse_line(line, number)


def read_through(path: Path) -> None:
    """Read all of a file. Raises ValueError as `read_documents` does; a text is read in pieces."""
    if is_json_lines(path):
        for _ in read_documents(path):
            pass
        return
    with path.open(encoding="utf-8") as file:
        while file.read(READ_CHARACTERS):
            pass


def is_json_lines(path: Path) -> bool:
    """Return whether the file is one of JSON lines, by its name."""
    return path.suffix.lower() == JSON_LINES


def parse_line(line: str, number: int) -> Document:
    """Return the document of one line of a .jsonl file.

    Raises:
        ValueError: the line is none; the message completes 'the file …' and names the line.
    """
    try:
        found = json.loads(line)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except (ValueError, RecursionError):
        raise ValueError(f"has no JSON in line {number}") from None
    match found:
        case {"text": str(text)}:
            return text
        case {"messages": [_, *_] as messages}:
            try:
                return conversation(messages)
            except ValueError as error:
                raise ValueError(f"{error} in line {number}") from None
    raise ValueError(f'has neither "text" nor "messages" in line {number}')


def conversation(messages: Iterable[object]) -> Sequence[Message]:
    """Return the messages of a conversation.

    Raises:
        ValueError: a message lacks its role or content; the text completes 'the file …'.
    """
    found = []
    for message in messages:
        match message:
            case {"role": str(role), "content": str(content)}:
                found.append(Message(role=role, content=content))
            case _:
                raise ValueError('has a message without a "role" and a "content"')
    return found


def to_line(document: Document) -> str:
    """Return the line of a .jsonl file that holds a document."""
    field = "text" if isinstance(document, str) else "messages"
    return json.dumps({field: document}, ensure_ascii=False) + "\n"


def characters(document: Document) -> int:
    return len(document) if isinstance(document, str) else sum(len(message["content"]) for message in document)


def join_lines(rows: Iterable[str], size: int) -> Iterator[str]:
    """Documents of about so many characters each, out of the lines of a text; a blank line between two of them."""
    gathered: list[str] = []
    length = 0
    for row in rows:
        gathered.append(row)
        length += len(row)
        if length >= size:
            yield "\n\n".join(gathered)
            gathered, length = [], 0
    if gathered:
        yield "\n\n".join(gathered)
