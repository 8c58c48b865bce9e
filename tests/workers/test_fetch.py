"""Fetching a job's model and text: pinned, verified, resumed, and kept once."""

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from app.errors import (
    DownloadCorrupted,
    HubUnavailable,
    InvalidModel,
    OutsideRoots,
    UnknownDataset,
    UnknownModel,
    UnsupportedModel,
)
from app.settings import Settings
from app.sources import text_files
from app.sources.documents import read_documents
from modelpress.contract.job import Source
from modelpress.contract.recipe import Recipe
from tests.support.checkpoints import (
    CONFIG,
    SHAPES,
    json_bytes,
    safetensors_bytes,
    sharded,
    single_file,
    write_files,
    write_gguf,
)
from tests.support.fetching import BIG_FILES, NAME, MakeRequest, contents, silent
from tests.support.hub import LoopbackHub
from workers import expected
from workers.fetch import FetchReport, FetchRequest, fetch, fetch_environment, fetch_request


def parquet_bytes(rows: list[str | None], column: str = "text") -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: pyarrow.array(rows, pyarrow.string())}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("files", [single_file(), sharded()], ids=["single", "sharded"])
def test_a_hub_model_arrives_whole(hub: LoopbackHub, request_for: MakeRequest, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    assert contents(fetch(request_for(), silent).model_path) == files


def test_code_pickles_and_folders_stay_on_the_hub(hub: LoopbackHub, request_for: MakeRequest) -> None:
    unwanted = {
        "modeling.py": b"import os",
        "pytorch_model.bin": b"\x80\x02",
        "onnx/model.onnx": b"",
        "other.safetensors": safetensors_bytes(SHAPES),
        ".gitattributes": b"",
    }
    hub.add(NAME, single_file() | unwanted)
    assert contents(fetch(request_for(), silent).model_path) == single_file()


def test_named_chat_templates_keep_their_folder(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file() | {"additional_chat_templates/tool_use.jinja": b"{{ tools }}"})
    directory = fetch(request_for(), silent).model_path
    assert (directory / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"{{ tools }}"


def test_the_commit_of_the_job_is_fetched_though_the_branch_has_moved(
    hub: LoopbackHub, request_for: MakeRequest
) -> None:
    commit = hub.add(NAME, single_file()).commit
    request = request_for()
    model_path = fetch(request, silent).model_path
    assert model_path.name == commit
    assert not any("/main" in seen.path for seen in hub.requests)


def test_the_second_fetch_asks_nothing(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file())
    first = fetch(request_for(), silent)
    asked = len(hub.requests)
    assert fetch(request_for(), silent) == first
    assert len(hub.requests) == asked


def test_a_broken_connection_goes_on_where_it_broke(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, BIG_FILES)
    hub.cut_after = 70_000
    assert contents(fetch(request_for(), silent).model_path) == BIG_FILES
    last = len(BIG_FILES["model.safetensors"]) - 1
    assert [seen.range for seen in hub.requests if seen.redirected] == [f"bytes=0-{last}", f"bytes=70000-{last}"]


def test_a_server_that_ignores_ranges_still_completes_a_broken_download(
    hub: LoopbackHub, request_for: MakeRequest
) -> None:
    hub.add(NAME, BIG_FILES)
    hub.cut_after = 70_000
    hub.ignore_ranges = True
    assert contents(fetch(request_for(), silent).model_path) == BIG_FILES


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_wrong_bytes_are_refused_and_thrown_away(hub: LoopbackHub, request_for: MakeRequest, name: str) -> None:
    repository = hub.add(NAME, single_file())
    right = repository.files[name]
    repository.served[name] = bytes([right[0] ^ 1]) + right[1:]
    with pytest.raises(DownloadCorrupted, match=name):
        fetch(request_for(), silent)
    assert not list(request_for().sources_dir.rglob(f"{name}*"))
    repository.served.clear()
    assert contents(fetch(request_for(), silent).model_path) == single_file()


def test_a_damaged_model_is_refused_although_its_digests_are_right(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file() | {"model.safetensors": safetensors_bytes(SHAPES)[:-4]})
    with pytest.raises(InvalidModel, match=r"model\.safetensors"):
        fetch(request_for(), silent)


def test_remote_code_is_refused_again(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file() | {"config.json": json_bytes({**CONFIG, "model_type": "evil", "auto_map": {}})})
    with pytest.raises(UnsupportedModel, match="auto_map"):
        fetch(request_for(), silent)


def test_a_hub_that_recovers_is_asked_again(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file())
    hub.status = 503

    def recover(report: FetchReport) -> None:
        hub.status = None

    assert contents(fetch(request_for(), recover).model_path) == single_file()


def test_a_hub_that_stays_down_is_given_up(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file())
    hub.status = 503
    with pytest.raises(HubUnavailable):
        fetch(request_for(), silent)
    assert len(hub.requests) == 3


def test_a_model_that_vanished_is_unknown(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file())
    request = request_for()
    hub.repositories.clear()
    with pytest.raises(UnknownModel):
        fetch(request, silent)


def test_a_hub_that_was_turned_off_is_not_asked(hub: LoopbackHub, request_for: MakeRequest) -> None:
    hub.add(NAME, single_file())
    request = request_for()
    request = request.model_copy(update={"sources": request.sources.model_copy(update={"hub_enabled": False})})
    with pytest.raises(UnknownModel, match="local:"):
        fetch(request, silent)
    assert hub.requests == []


def test_local_models_stay_where_they_are(request_for: MakeRequest, model_root: Path) -> None:
    directory = write_files(model_root / "tiny", single_file())
    path = write_gguf(model_root / "tiny.gguf")
    assert fetch(request_for("local:tiny"), silent).model_path == directory
    assert fetch(request_for("local:tiny.gguf"), silent).model_path == path


def test_the_headers_of_any_model_tell_how_long_its_stages_take(
    request_for: MakeRequest, hub: LoopbackHub, model_root: Path
) -> None:
    write_files(model_root / "tiny", single_file())
    hub.add(NAME, single_file())
    write_gguf(model_root / "tiny.gguf")
    for reference in ("local:tiny", "local:tiny.gguf", NAME):
        request = request_for(reference)
        told = fetch(request, silent).expected
        assert told.seconds["inspect"] < expected.of_stages(request.recipe).seconds["inspect"]


def test_a_local_model_that_became_a_link_out_is_refused(
    request_for: MakeRequest, model_root: Path, tmp_path: Path
) -> None:
    write_files(tmp_path / "elsewhere", single_file())
    (model_root / "tiny").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideRoots):
        fetch(request_for("local:tiny"), silent)


def fetch_text(request_for: MakeRequest, model_root: Path, reference: str, **changes: Any) -> tuple[Path, str | None]:
    write_files(model_root / "tiny", single_file())
    done = fetch(request_for("local:tiny", texts=(reference,), **changes), silent)
    return done.texts[reference], done.text_revisions.get(reference)


def test_builtin_text_becomes_a_file(request_for: MakeRequest, model_root: Path) -> None:
    training, _ = fetch_text(request_for, model_root, "builtin:python-docs")
    evaluation, _ = fetch_text(request_for, model_root, "builtin:python-docs-test")
    assert training.stat().st_size > evaluation.stat().st_size > 200_000


@pytest.mark.parametrize(("name", "content"), [("a.txt", "hello"), ("a.jsonl", '{"text": "hello"}\n')])
def test_a_local_text_stays_where_it_is(
    request_for: MakeRequest, model_root: Path, data_root: Path, name: str, content: str
) -> None:
    (data_root / name).write_text(content)
    assert fetch_text(request_for, model_root, f"local:{name}") == (data_root / name, None)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"a" * 100_000 + b"\xff", "a.txt' is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": 1}\n', "a.jsonl' has neither .* in line 3"),
    ],
)
def test_text_that_goes_bad_further_down_is_refused(
    request_for: MakeRequest, model_root: Path, data_root: Path, name: str, content: bytes, complaint: str
) -> None:
    (data_root / name).write_bytes(content)
    with pytest.raises(UnknownDataset, match=complaint):
        fetch_text(request_for, model_root, f"local:{name}")


def test_parquet_rows_become_documents(hub: LoopbackHub, request_for: MakeRequest, model_root: Path) -> None:
    files = {
        "raw/test-00001.parquet": parquet_bytes(["drei"]),
        "raw/test-00000.parquet": parquet_bytes(["eins", "zwei ü"]),
    }
    commit = hub.add("acme/text", files, kind="datasets").commit
    path, revision = fetch_text(request_for, model_root, "hub:acme/text/raw/test")
    assert list(read_documents(path)) == ["eins", "zwei ü", "drei"]
    assert revision == commit
    assert [left.name for left in path.parent.iterdir() if left.is_dir()] == []


def test_rows_that_are_the_lines_of_a_text_are_put_together(
    hub: LoopbackHub, request_for: MakeRequest, model_root: Path
) -> None:
    rows = parquet_bytes(["", " = Title = \n", None, " A paragraph . \n"])
    hub.add("acme/text", {"data/test-0.parquet": rows}, kind="datasets")
    path, _ = fetch_text(request_for, model_root, "hub:acme/text/test")
    assert list(read_documents(path)) == ["\n\n = Title = \n\n\n\n\n A paragraph . \n"]


TALK = [{"role": "user", "content": "Eins?"}, {"role": "assistant", "content": "Zwei."}]


@pytest.mark.parametrize("name", ["data/test-0.parquet", "test.jsonl"])
def test_conversations_of_the_hub_stay_conversations(
    hub: LoopbackHub, request_for: MakeRequest, model_root: Path, name: str
) -> None:
    content = json_bytes({"messages": TALK})
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"messages": [TALK]}), buffer)
        content = buffer.getvalue()
    hub.add("acme/talk", {name: content}, kind="datasets")
    path, _ = fetch_text(request_for, model_root, "hub:acme/talk/test")
    assert list(read_documents(path)) == [TALK]


def test_rows_without_a_message_are_left_out(hub: LoopbackHub, request_for: MakeRequest, model_root: Path) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"messages": [TALK, [], None]}), buffer)
    hub.add("acme/talk", {"data/test-0.parquet": buffer.getvalue()}, kind="datasets")
    path, _ = fetch_text(request_for, model_root, "hub:acme/talk/test")
    assert list(read_documents(path)) == [TALK]


def test_a_hub_file_of_other_bytes_is_said_to_be_no_text(
    hub: LoopbackHub, request_for: MakeRequest, model_root: Path
) -> None:
    hub.add("acme/text", {"test.jsonl": b'{"text": "x"}\n{"text": "\xff"}\n'}, kind="datasets")
    with pytest.raises(UnknownDataset, match=r"'test\.jsonl' of 'hub:acme/text/test' is not UTF-8 text"):
        fetch_text(request_for, model_root, "hub:acme/text/test")


def test_a_bad_line_of_a_hub_file_is_named(hub: LoopbackHub, request_for: MakeRequest, model_root: Path) -> None:
    hub.add("acme/text", {"test.jsonl": b'{"text": "x"}\n{"text": 1}\n'}, kind="datasets")
    with pytest.raises(UnknownDataset, match=r"'test\.jsonl' of 'hub:acme/text/test' has neither .* in line 2"):
        fetch_text(request_for, model_root, "hub:acme/text/test")


def test_a_dataset_at_a_known_commit_is_fetched_once(
    hub: LoopbackHub, request_for: MakeRequest, model_root: Path
) -> None:
    reference = "hub:acme/text/test"
    commit = hub.add("acme/text", {"data/test-0.parquet": parquet_bytes(["x"])}, kind="datasets").commit
    fetch_text(request_for, model_root, reference)
    asked = len(hub.requests)
    fetch_text(request_for, model_root, reference, text_revisions={reference: commit})
    assert len(hub.requests) == asked


def test_a_row_that_is_too_long_for_a_document_is_refused(
    hub: LoopbackHub, request_for: MakeRequest, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST_ROW", 100)
    hub.add("acme/text", {"data/test-0.parquet": parquet_bytes(["x" * 100])}, kind="datasets")
    with pytest.raises(UnknownDataset, match="more than 100 characters"):
        fetch_text(request_for, model_root, "hub:acme/text/test")


@pytest.mark.parametrize("content", [parquet_bytes(["x"], column="body"), b"PAR1 and nothing else"])
def test_parquet_without_text_is_refused(
    hub: LoopbackHub, request_for: MakeRequest, model_root: Path, content: bytes
) -> None:
    hub.add("acme/text", {"data/test-0.parquet": content}, kind="datasets")
    with pytest.raises(UnknownDataset, match="column 'text'"):
        fetch_text(request_for, model_root, "hub:acme/text/test")


def test_the_request_names_every_text_once(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    recipe = Recipe.model_validate(
        {
            "model": NAME,
            "target_ratio": 1.5,
            "distillation": {"datasets": ["builtin:python-docs", "local:b.jsonl"]},
            "evaluation": {"datasets": ["local:a.txt", "local:a.txt"]},
        }
    )
    source = Source(reference=NAME, revision="c" * 40, model_type="llama", parameters=1)
    request = fetch_request(settings, recipe, source)
    assert (request.revision, request.texts) == ("c" * 40, ("builtin:python-docs", "local:b.jsonl", "local:a.txt"))


def test_the_token_goes_through_the_pipe_and_is_shown_nowhere(
    request_for: MakeRequest, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELPRESS_HUB_TOKEN", "hf_secret")
    hub.token = "hf_secret"
    request = request_for()
    assert FetchRequest.model_validate_json(request.model_dump_json()) == request
    assert "hf_secret" in request.model_dump_json()
    assert "hf_secret" not in f"{request!r} {request.model_dump()}"
    assert "hf_secret" not in fetch_environment().values()


def test_a_request_that_cannot_be_read_does_not_show_the_token(request_for: MakeRequest, hub: LoopbackHub) -> None:
    hub.token = "hf_secret"
    line = request_for().model_dump_json().replace("sources_dir", "folder")
    with pytest.raises(ValidationError) as refused:
        FetchRequest.model_validate_json(line)
    assert "hf_secret" not in str(refused.value)
