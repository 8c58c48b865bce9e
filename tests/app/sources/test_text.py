"""Dataset references as they are checked when a job is posted."""

import os
from pathlib import Path

import pytest

from app.errors import HubUnavailable, OutsideRoots, UnknownDataset
from app.settings import SourceSettings
from app.sources.text import TextSources
from modelpress.errors import Refused
from tests.support.hub import LoopbackHub

FIELD = "evaluation.datasets.0"


@pytest.fixture
def sources(settings: SourceSettings) -> TextSources:
    return TextSources(settings)


def refusal(sources: TextSources, reference: str) -> Refused:
    with pytest.raises(Refused) as caught:
        sources.check(reference, FIELD)
    assert caught.value.field == FIELD
    return caught.value


@pytest.mark.parametrize("name", ["python-docs", "python-docs-test"])
def test_builtin_text_is_known(sources: TextSources, name: str) -> None:
    assert sources.check(f"builtin:{name}", FIELD).kind == "builtin"


def test_unknown_builtin_text_is_refused_with_the_names_there_are(sources: TextSources) -> None:
    error = refusal(sources, "builtin:shakespeare")
    assert isinstance(error, UnknownDataset)
    assert "python-docs-test" in error.message


@pytest.mark.parametrize("reference", ["", "python-docs", "s3:bucket", "file:///etc/passwd"])
def test_an_unknown_scheme_is_refused(sources: TextSources, reference: str) -> None:
    assert isinstance(refusal(sources, reference), UnknownDataset)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Grüße\n"),
        ("A.TXT", "Grüße\n"),
        ("b.jsonl", '{"text": "one"}\n{"text": "two"}\n'),
        ("B.JSONL", '{"text": "one"}\n'),
        ("mark.jsonl", '\ufeff{"text": "one"}\n'),
        ("blank.jsonl", '\n  \n{"text": "one"}\n'),
    ],
)
def test_local_text_is_found(sources: TextSources, data_root: Path, name: str, content: str) -> None:
    (data_root / name).write_text(content, encoding="utf-8")
    assert sources.check(f"local:{name}", FIELD).path == data_root / name


def test_a_character_cut_by_the_first_read_is_no_error(sources: TextSources, data_root: Path) -> None:
    (data_root / "a.txt").write_text("x" + "ü" * 70_000, encoding="utf-8")
    assert sources.check("local:a.txt", FIELD).kind == "local"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.txt", b" \n", "empty"),
        ("latin.txt", "Grüße".encode("latin-1"), "UTF-8"),
        ("page.html", b"<p>", ".txt"),
        ("a.jsonl", b"not json\n", "JSON"),
        ("blank.jsonl", b"\n\nnot json\n", "JSON in line 3"),
        ("b.jsonl", b'{"body": "x"}\n', '"text"'),
        ("c.jsonl", b'{"text": 7}\n', '"text"'),
        ("d.jsonl", b'{"messages": []}\n', '"messages"'),
        ("e.jsonl", b'{"messages": [{"role": "user"}]}\n', '"content" in line 1'),
        ("f.jsonl", b'{"text": "\\ud800"}\n', "JSON"),
    ],
)
def test_what_is_no_text_is_refused(
    sources: TextSources, data_root: Path, name: str, content: bytes, word: str
) -> None:
    (data_root / name).write_bytes(content)
    error = refusal(sources, f"local:{name}")
    assert isinstance(error, UnknownDataset)
    assert word in error.message


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd"])
def test_a_path_out_of_the_roots_is_refused(sources: TextSources, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    assert isinstance(refusal(sources, f"local:{name}"), OutsideRoots)


def test_a_link_out_of_the_roots_is_refused(sources: TextSources, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (data_root / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert isinstance(refusal(sources, "local:link.txt"), OutsideRoots)


def test_a_pipe_is_not_waited_for(sources: TextSources, data_root: Path) -> None:
    os.mkfifo(data_root / "pipe.txt")
    assert isinstance(refusal(sources, "local:pipe.txt"), UnknownDataset)


def test_a_hub_dataset_is_pinned_and_its_files_are_in_order(sources: TextSources, hub: LoopbackHub) -> None:
    names = ["raw/train-00001.parquet", "raw/train-00000.parquet", "raw/test-0.parquet", "other/train-0.parquet"]
    commit = hub.add("acme/text", dict.fromkeys(names, b"PAR1"), kind="datasets").commit
    text = sources.check("hub:acme/text/raw/train", FIELD)
    assert text.revision == commit
    assert [file.name for file in text.files] == ["raw/train-00000.parquet", "raw/train-00001.parquet"]


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("hub:acme/text/raw/train", "raw/train/0000.parquet"),
        ("hub:acme/text/train", "data/train-00000-of-00001.parquet"),
        ("hub:acme/text/raw/train", "raw/train-0.jsonl"),
        ("hub:acme/text/train", "train.jsonl"),
    ],
)
def test_the_layouts_of_the_hub_are_known(sources: TextSources, hub: LoopbackHub, reference: str, file: str) -> None:
    beginning = b"PAR1" if file.endswith(".parquet") else b'{"text": "x"}'
    hub.add("acme/text", {file: beginning, "README.md": b""}, kind="datasets")
    assert [found.name for found in sources.check(reference, FIELD).files] == [file]


@pytest.mark.parametrize(
    "reference",
    ["hub:acme/absent/raw/train", "hub:acme/text/raw/test", "hub:acme/text/r.w/train", "hub:acme/text/a/../train"],
)
def test_a_split_that_does_not_exist_is_refused(sources: TextSources, hub: LoopbackHub, reference: str) -> None:
    hub.add("acme/text", {"raw/train-0.parquet": b"PAR1"}, kind="datasets")
    assert isinstance(refusal(sources, reference), UnknownDataset)


def test_a_gated_dataset_is_refused_although_its_listing_is_public(sources: TextSources, hub: LoopbackHub) -> None:
    hub.add("acme/text", {"raw/train-0.parquet": b"PAR1"}, kind="datasets").gated = True
    assert "gated" in refusal(sources, "hub:acme/text/raw/train").message


def test_a_file_that_is_only_called_parquet_is_refused(sources: TextSources, hub: LoopbackHub) -> None:
    hub.add("acme/text", {"raw/train-0.parquet": b"<html>"}, kind="datasets")
    assert "parquet" in refusal(sources, "hub:acme/text/raw/train").message


def test_a_failing_hub_is_unavailable(sources: TextSources, hub: LoopbackHub) -> None:
    hub.status = 500
    with pytest.raises(HubUnavailable):
        sources.check("hub:acme/text/raw/train", FIELD)


def test_a_service_without_a_hub_says_what_to_send(settings: SourceSettings) -> None:
    sources = TextSources(settings.model_copy(update={"hub_enabled": False}))
    assert "builtin:" in refusal(sources, "hub:acme/text/raw/train").message
