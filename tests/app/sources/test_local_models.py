"""`local:NAME`: directories and GGUF files under the operator's roots, and everything that is refused there."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import (
    InvalidModel,
    NoSafetensors,
    NoTokenizer,
    OutsideRoots,
    TooManyModelsRead,
    UnknownModel,
    UnsupportedModel,
)
from app.settings import SourceSettings
from app.sources import models
from app.sources.models import REFUSALS, ModelSources, explained
from modelpress.errors import Refused
from modelpress.spec.errors import AlreadyQuantised, CompressionError, MalformedModel, UnsupportedArchitecture
from tests.support.checkpoints import (
    CONFIG,
    PARAMETERS,
    SHAPES,
    TOKENIZER,
    json_bytes,
    safetensors_bytes,
    sharded,
    single_file,
    write_files,
    write_gguf,
)
from tests.support.refusals import refusal


@pytest.fixture
def sources(settings: SourceSettings) -> ModelSources:
    return ModelSources(settings)


def test_a_directory_is_resolved(sources: ModelSources, model_root: Path) -> None:
    directory = write_files(model_root / "team" / "tiny", single_file())
    model = sources.resolve("local:team/tiny")
    assert (model.kind, model.path, model.revision) == ("directory", directory, None)
    assert (model.config["hidden_size"], model.inventory.total_parameters) == (8, PARAMETERS)


def test_a_sharded_directory_is_resolved(sources: ModelSources, model_root: Path) -> None:
    write_files(model_root / "tiny", sharded())
    assert sources.resolve("local:tiny").inventory.total_parameters == PARAMETERS


def test_a_gguf_file_is_resolved(sources: ModelSources, model_root: Path) -> None:
    path = write_gguf(model_root / "tiny.gguf")
    model = sources.resolve("local:tiny.gguf")
    assert (model.kind, model.path, model.inventory.total_parameters) == ("gguf", path, PARAMETERS)


def test_whatever_is_found_wrong_with_a_model_has_a_refusal() -> None:
    found: list[type[CompressionError]] = [UnsupportedArchitecture, AlreadyQuantised, MalformedModel]
    for kind in found:  # it grows while it is walked: subclasses of subclasses count
        found += kind.__subclasses__()
    assert len(found) > len({kind.code for kind in found}) > 2
    for kind in found:
        with pytest.raises(REFUSALS[kind.code]) as refused, explained("local:x"):
            raise kind("It is broken.")
        assert (refused.value.field, refused.value.code) == ("model", kind.code)


def test_the_roots_are_searched_in_order(tmp_path: Path, settings: SourceSettings) -> None:
    roots = (tmp_path / "first", tmp_path / "second")
    for root in roots:
        write_files(root / "both", single_file())
    write_files(roots[1] / "second-only", single_file())
    sources = ModelSources(settings.model_copy(update={"model_roots": roots}))
    assert sources.resolve("local:both").path == roots[0] / "both"
    assert sources.resolve("local:second-only").path == roots[1] / "second-only"


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/../../secret", "..", "~/../x"])
def test_a_name_that_climbs_is_outside_the_roots(sources: ModelSources, tmp_path: Path, name: str) -> None:
    write_files(tmp_path / "secret", single_file())
    assert isinstance(refusal(sources, f"local:{name}"), OutsideRoots)


@pytest.mark.parametrize("name", ["", "absent", "nul\0", "line\nbreak", "\ud800", "x" * 300, "x" * 100_000, "a/" * 200])
def test_a_name_of_nothing_is_unknown(sources: ModelSources, name: str) -> None:
    assert isinstance(refusal(sources, f"local:{name}"), UnknownModel)


def test_a_link_out_of_the_root_is_refused(sources: ModelSources, model_root: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", single_file())
    (model_root / "link").symlink_to(tmp_path / "elsewhere")
    assert isinstance(refusal(sources, "local:link"), OutsideRoots)


def test_a_loop_of_links_is_unknown(sources: ModelSources, model_root: Path) -> None:
    (model_root / "loop").symlink_to(model_root / "loop")
    assert isinstance(refusal(sources, "local:loop"), UnknownModel)


def test_without_roots_the_setting_is_named(settings: SourceSettings) -> None:
    error = refusal(ModelSources(settings.model_copy(update={"model_roots": ()})), "local:tiny")
    assert isinstance(error, UnknownModel)
    assert "MODELPRESS_MODEL_ROOTS" in error.message


def test_a_file_that_is_no_model_is_refused(sources: ModelSources, model_root: Path) -> None:
    (model_root / "notes.txt").write_text("hello")
    assert isinstance(refusal(sources, "local:notes.txt"), InvalidModel)


def without(name: str) -> dict[str, bytes]:
    return {file: content for file, content in single_file().items() if file != name}


def with_config(**changes: Any) -> dict[str, bytes]:
    return single_file() | {"config.json": json_bytes(CONFIG | changes)}


def with_index(place: object) -> dict[str, bytes]:
    index = {"weight_map": dict.fromkeys(SHAPES, place)}
    return sharded() | {"model.safetensors.index.json": json_bytes(index)}


def tokenizer_with(added: dict[str, Any]) -> bytes:
    return json_bytes(TOKENIZER | {"added_tokens": [added]})


WEIGHTS = safetensors_bytes(SHAPES)
BROKEN: dict[str, tuple[dict[str, bytes], type[Refused], str]] = {
    "no config": (without("config.json"), InvalidModel, "config.json"),
    "config is a list": (single_file() | {"config.json": b"[]"}, InvalidModel, "config.json"),
    "config is no JSON": (single_file() | {"config.json": b"{"}, InvalidModel, "config.json"),
    "config nests deeply": (single_file() | {"config.json": b'{"a":' * 100_000}, InvalidModel, "config.json"),
    "config is huge": (single_file() | {"config.json": b" " * 3_000_000 + b"{}"}, InvalidModel, "larger"),
    "remote code": (
        with_config(model_type="evil", auto_map={"AutoModel": "modeling.Evil"}),
        UnsupportedModel,
        "auto_map",
    ),
    "quantised": (with_config(quantization_config={"bits": 4}), UnsupportedModel, "quantised"),
    "foreign kernel": (with_config(attn_implementation="evil/kernel"), UnsupportedModel, "attn_implementation"),
    "byte order mark": (
        single_file() | {"config.json": b"\xef\xbb\xbf" + json_bytes(CONFIG)},
        InvalidModel,
        "byte order mark",
    ),
    "an adapter": ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, InvalidModel, "adapter"),
    "a GGUF file in a folder": ({"tiny.GGUF": b"GGUF"}, InvalidModel, "tiny.GGUF"),
    "no tokenizer": (without("tokenizer.json"), NoTokenizer, "tokenizer"),
    "tokenizer config alone": (
        without("tokenizer.json") | {"tokenizer_config.json": b"{}"},
        NoTokenizer,
        "tokenizer_config.json alone",
    ),
    "tokenizer is a pointer": (
        single_file() | {"tokenizer.json": b"version https://git-lfs.github.com/spec/v1\n"},
        InvalidModel,
        "Git LFS",
    ),
    "tokenizer without vocabulary": (single_file() | {"tokenizer.json": b"{}"}, NoTokenizer, "vocabulary"),
    "tokenizer beyond the table": (
        single_file() | {"tokenizer.json": tokenizer_with({"content": "fox", "id": 32, "special": False})},
        InvalidModel,
        "'fox' with the number 32",
    ),
    "unknown architecture": (with_config(model_type="bert"), UnsupportedModel, "bert"),
    "no model type": (with_config(model_type=None), UnsupportedModel, "architecture"),
    "sizes that disagree": (with_config(vocab_size=33), InvalidModel, "33"),
    "no weights": (without("model.safetensors"), NoSafetensors, "safetensors"),
    "pickle only": (
        without("model.safetensors") | {"pytorch_model.bin": b"\x80\x02"},
        NoSafetensors,
        "can run code",
    ),
    "cut off": (single_file() | {"model.safetensors": WEIGHTS[:-1]}, InvalidModel, "model.safetensors"),
    "empty": (single_file() | {"model.safetensors": b""}, InvalidModel, "model.safetensors"),
    "huge header": (
        single_file() | {"model.safetensors": b"\xff" * 7 + b"\x00" + b"{}"},
        InvalidModel,
        "model.safetensors",
    ),
    "index climbs": (with_index("../outside.safetensors"), InvalidModel, "outside"),
    "index is absolute": (with_index("/etc/x.safetensors"), InvalidModel, "plain"),
    "index goes down": (with_index("sub/x.safetensors"), InvalidModel, "plain"),
    "index names numbers": (with_index(7), InvalidModel, "plain"),
    "index names nothing": (with_index("model-3.safetensors"), InvalidModel, "model-3"),
    "index misplaces": (with_index("model-1.safetensors"), InvalidModel, "model-1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused(sources: ModelSources, model_root: Path, case: str) -> None:
    files, kind, word = BROKEN[case]
    write_files(model_root.parent, {"outside.safetensors": WEIGHTS})
    write_files(model_root / "broken", files)
    error = refusal(sources, "local:broken")
    assert type(error) is kind
    assert word in error.message
    assert str(model_root.parent) not in error.message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_a_link_out_is_refused(
    sources: ModelSources, model_root: Path, tmp_path: Path, name: str
) -> None:
    directory = write_files(model_root / "linked", single_file())
    (directory / name).rename(tmp_path / name)
    (directory / name).symlink_to(tmp_path / name)
    error = refusal(sources, "local:linked")
    assert isinstance(error, InvalidModel)
    assert name in error.message


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"GGUF", "header"), (b"PK\x03\x04" * 9, "begin"), (b"GGUF" + b"\xff" * 60, "version"), (b"", "header")],
)
def test_a_broken_gguf_file_is_refused(sources: ModelSources, model_root: Path, content: bytes, word: str) -> None:
    (model_root / "broken.gguf").write_bytes(content)
    error = refusal(sources, "local:broken.gguf")
    assert isinstance(error, InvalidModel)
    assert word in error.message


def test_a_gguf_file_of_another_architecture_is_refused(sources: ModelSources, model_root: Path) -> None:
    write_gguf(model_root / "mamba.gguf", architecture="mamba")
    error = refusal(sources, "local:mamba.gguf")
    assert isinstance(error, UnsupportedModel)
    assert "'mamba'" in error.message


def test_code_beside_an_architecture_of_transformers_is_not_needed(sources: ModelSources, model_root: Path) -> None:
    write_files(model_root / "native", with_config(auto_map={"AutoConfig": "configuration_llama.LlamaConfig"}))
    assert sources.resolve("local:native").inventory.model_type == "llama"


def test_a_special_token_may_lack_a_row_as_that_for_images_does(sources: ModelSources, model_root: Path) -> None:
    content = tokenizer_with({"content": "<image>", "id": 32, "special": True})
    write_files(model_root / "text", single_file() | {"tokenizer.json": content})
    assert sources.resolve("local:text").inventory.vocab_size == 32


def hub_cache(model_root: Path, *, blobs: Path) -> None:
    """A snapshot as the hub's own cache lays it out: links to content in `blobs`."""
    snapshot = model_root / "models--acme--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir(parents=True)
    for name, content in single_file().items():
        (blobs / name).write_bytes(content)
        (snapshot / name).symlink_to(blobs / name)


def test_a_snapshot_of_the_hub_s_cache_is_resolved(sources: ModelSources, model_root: Path) -> None:
    hub_cache(model_root, blobs=model_root / "models--acme--tiny" / "blobs")
    model = sources.resolve("local:models--acme--tiny/snapshots/abc")
    assert model.inventory.total_parameters == PARAMETERS


def test_a_snapshot_whose_blobs_lie_outside_the_roots_is_refused(sources: ModelSources, model_root: Path) -> None:
    hub_cache(model_root, blobs=model_root.parent / "elsewhere")
    assert isinstance(refusal(sources, "local:models--acme--tiny/snapshots/abc"), InvalidModel)


def test_a_snapshot_named_by_a_narrower_root_is_refused(settings: SourceSettings, model_root: Path) -> None:
    hub_cache(model_root, blobs=model_root / "models--acme--tiny" / "blobs")
    narrow = settings.model_copy(update={"model_roots": (model_root / "models--acme--tiny" / "snapshots",)})
    assert isinstance(refusal(ModelSources(narrow), "local:abc"), InvalidModel)


def test_a_link_out_at_any_depth_is_refused(sources: ModelSources, model_root: Path, tmp_path: Path) -> None:
    directory = write_files(model_root / "deep", single_file())
    (tmp_path / "secret.jinja").write_text("secret")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").symlink_to(tmp_path / "secret.jinja")
    error = refusal(sources, "local:deep")
    assert isinstance(error, InvalidModel)
    assert "additional_chat_templates/tool.jinja" in error.message


def test_a_folder_that_is_a_link_out_is_refused(sources: ModelSources, model_root: Path, tmp_path: Path) -> None:
    directory = write_files(model_root / "deep", single_file())
    (tmp_path / "templates").mkdir()
    (directory / "additional_chat_templates").symlink_to(tmp_path / "templates")
    assert isinstance(refusal(sources, "local:deep"), InvalidModel)


def test_a_name_in_capitals_is_that_of_a_gguf_file_too(sources: ModelSources, model_root: Path) -> None:
    assert sources.resolve(f"local:{write_gguf(model_root / 'TINY.GGUF').name}").kind == "gguf"


def test_few_models_are_read_at_once_and_others_are_told_to_wait(
    sources: ModelSources, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(model_root / "tiny", single_file())
    monkeypatch.setattr(models, "TURN_SECONDS", 0.01)
    for _ in range(models.READ_AT_ONCE):
        assert sources.turns.acquire(blocking=False)
    with pytest.raises(TooManyModelsRead, match="other models"):
        sources.resolve("local:tiny")
    sources.turns.release()
    assert sources.resolve("local:tiny").kind == "directory"
    sources.resolve("local:tiny")
