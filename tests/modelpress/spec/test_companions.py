"""Files beside the weights: what of them passes, and what is refused before it is parsed."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelpress.spec.companions import companion_names, write_companions
from modelpress.spec.errors import MalformedModel
from modelpress.spec.json_files import parse_object, read_object


def passed(tmp_path: Path, name: str, content: Any) -> Any:
    """Return what arrives of a JSON file."""
    source, directory = tmp_path / "source", tmp_path / "package"
    source.mkdir()
    directory.mkdir()
    (source / name).write_text(json.dumps(content))
    write_companions(source, directory)
    return json.loads((directory / name).read_text())


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("field", ["auto_map", "trust_remote_code", "custom_pipelines", "tokenizer_file", "x"])
def test_a_field_that_nothing_of_the_library_reads_is_dropped(tmp_path: Path, name: str, field: str) -> None:
    known = {"temperature": 0.5} if name.startswith("generation") else {"eos_token": "</s>"}
    assert passed(tmp_path, name, {**known, field: {"AutoTokenizer": ["evil/repo--tok.Evil", None]}}) == known


@pytest.mark.parametrize("name", ["evil/repo--tok.Evil", "tok.Evil", "", 7, ["LlamaTokenizer"]])
def test_a_tokenizer_class_that_is_no_plain_name_is_dropped(tmp_path: Path, name: Any) -> None:
    assert passed(tmp_path, "tokenizer_config.json", {"tokenizer_class": name, "legacy": True}) == {"legacy": True}


def test_a_tokenizer_without_foreign_fields_passes_byte_for_byte(tmp_path: Path) -> None:
    content = '{"version":"1.0",  "model": {"vocab": {"\\ud800": 0, "ü": 1}}}'
    source, directory = tmp_path / "source", tmp_path / "package"
    source.mkdir()
    directory.mkdir()
    (source / "tokenizer.json").write_text(content, encoding="utf-8")
    write_companions(source, directory)
    assert (directory / "tokenizer.json").read_text(encoding="utf-8") == content


def test_a_foreign_field_of_a_tokenizer_is_dropped(tmp_path: Path) -> None:
    assert passed(tmp_path, "tokenizer.json", {"model": {}, "auto_map": {}}) == {"model": {}}


def test_a_generation_config_that_is_no_json_becomes_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.')
    (tmp_path / "package").mkdir()
    write_companions(tmp_path, tmp_path / "package")
    assert json.loads((tmp_path / "package" / "generation_config.json").read_text()) == {}


@pytest.mark.parametrize(
    "name", ["tok.py", "LICENSE.py", "LICENSE.so", "config.json", "additional_chat_templates/evil.py", "README.md"]
)
def test_other_files_stay_behind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    assert companion_names(tmp_path) == []


@pytest.mark.parametrize("name", ["LICENSE", "LICENCE.txt", "license-mit", "Notice.md", "USE_POLICY.md"])
def test_licences_and_notices_come_along(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert companion_names(tmp_path) == [name]


def test_named_chat_templates_come_along(tmp_path: Path) -> None:
    source, directory = tmp_path / "source", tmp_path / "package"
    (source / "additional_chat_templates").mkdir(parents=True)
    directory.mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    write_companions(source, directory)
    assert (directory / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("LICENSE", b"x" * 1_000_001, "larger than 1000000 bytes"),
        ("LICENSE", b"MZ\0\0", "not text"),
        ("chat_template.jinja", b"\xff\xfe", "not UTF-8"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("tokenizer.json", b'{"model":' + b"[" * 100_000, "not JSON"),
        ("tokenizer.json", b'{"model": [' + b"0," * 9_000_000 + b"0]}", "values"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("vocab.json", b'{"a": "b"}', "numbers"),
    ],
)
def test_a_file_that_is_not_of_its_kind_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "package").mkdir()
    with pytest.raises(MalformedModel, match=f"^{name}.*{complaint}"):
        write_companions(tmp_path, tmp_path / "package")


def test_a_byte_order_mark_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf{}")
    with pytest.raises(MalformedModel, match="byte order mark"):
        read_object(tmp_path / "config.json", 100)


@pytest.mark.parametrize("content", [b'"x"', b"{", b"\xff\xfe{\0}\0", b'{"a":' * 100_000])
def test_what_is_no_json_object_in_utf8_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedModel, match="config"):
        parse_object(content, "config")
