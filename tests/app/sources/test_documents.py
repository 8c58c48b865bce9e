"""Documents in files, one a line or one in all."""

from pathlib import Path

import pytest

from app.sources import documents
from app.sources.documents import Document, join_lines, read_documents, to_line

TALK: Document = [{"role": "user", "content": "Wie geht's?"}, {"role": "assistant", "content": "Gut.\n"}]


def test_a_plain_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert list(read_documents(tmp_path / "a.txt")) == ["one\n\ntwo\n"]


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    documents = ["Grüße\n\n", TALK, ""]
    (tmp_path / "a.jsonl").write_text("\n".join(map(to_line, documents)), encoding="utf-8")
    assert list(read_documents(tmp_path / "a.jsonl")) == documents


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "has no JSON in line 3"),
        ("[" * 100_000, "has no JSON in line 3"),
        ('{"text": null}', "neither"),
        ('{"messages": "hello"}', "neither"),
        ('{"messages": ["hello"]}', 'a "role" and a "content" in line 3'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=complaint):
        list(read_documents(tmp_path / "a.jsonl"))


def test_lines_become_documents_of_about_the_asked_size() -> None:
    assert list(join_lines(["aaa", "", "bbb", "cccccc", "d"], 6)) == ["aaa\n\n\n\nbbb", "cccccc", "d"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "x"}\n', encoding="utf-8")
    assert list(read_documents(tmp_path / "a.jsonl")) == ["x"]


def test_a_line_that_is_too_long_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "LONGEST_LINE", 100)
    (tmp_path / "a.jsonl").write_text(to_line("x" * 50) + to_line("x" * 100))
    lines = read_documents(tmp_path / "a.jsonl")
    assert next(lines) == "x" * 50
    with pytest.raises(ValueError, match="more than 100 characters in line 2"):
        next(lines)
