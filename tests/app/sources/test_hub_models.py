"""`org/name[@revision]`: models of a hub, here one on loopback that also fails on request."""

import socket
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.errors import HubUnavailable, InvalidModel, NoSafetensors, NoTokenizer, UnknownModel, UnsupportedModel
from app.settings import SourceSettings
from app.sources.checkpoint import FIRST_READ
from app.sources.hub import Hub, part
from app.sources.models import ModelSources
from tests.support.checkpoints import CONFIG, PARAMETERS, SHAPES, json_bytes, safetensors_bytes, sharded, single_file
from tests.support.hub import LoopbackHub
from tests.support.refusals import refusal
from tests.support.waiting import PATIENCE_SECONDS

TOKEN = "hf_secret"


@pytest.fixture
def sources(settings: SourceSettings) -> ModelSources:
    return ModelSources(settings, PATIENCE_SECONDS)


def test_a_model_is_pinned_to_the_commit_of_its_default_branch(sources: ModelSources, hub: LoopbackHub) -> None:
    commit = hub.add("acme/tiny", single_file()).commit
    model = sources.resolve("acme/tiny")
    assert (model.kind, model.repository, model.revision, model.path) == ("hub", "acme/tiny", commit, None)
    assert model.inventory.total_parameters == PARAMETERS


def test_a_revision_is_pinned_to_its_commit(sources: ModelSources, hub: LoopbackHub) -> None:
    commit = hub.add("acme/tiny", single_file(), branch="v1.0").commit
    assert sources.resolve("acme/tiny@v1.0").revision == commit
    assert sources.resolve(f"acme/tiny@{commit}").revision == commit


def test_after_the_listing_everything_is_read_at_the_commit(sources: ModelSources, hub: LoopbackHub) -> None:
    commit = hub.add("acme/tiny", single_file()).commit
    sources.resolve("acme/tiny")
    assert all(f"/resolve/{commit}/" in seen.path for seen in hub.requests[1:])


def test_a_sharded_model_is_resolved(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/tiny", sharded())
    assert sources.resolve("acme/tiny").inventory.total_parameters == PARAMETERS


def test_only_the_headers_of_the_weights_are_read(sources: ModelSources, hub: LoopbackHub) -> None:
    shapes = {**SHAPES, "model.embed_tokens.weight": (200_000, 8)}
    config = {**CONFIG, "vocab_size": 200_000}
    hub.add(
        "acme/big",
        single_file() | {"config.json": json_bytes(config), "model.safetensors": safetensors_bytes(shapes)},
    )
    sources.resolve("acme/big")
    ranges = [seen.range for seen in hub.requests if seen.path.endswith(".safetensors")]
    assert set(ranges) == {f"bytes=0-{FIRST_READ - 1}"}


def test_a_header_longer_than_the_first_read_is_read_whole(sources: ModelSources, hub: LoopbackHub) -> None:
    config = {**CONFIG, "num_hidden_layers": 150}
    block = {name.removeprefix("model.layers.0."): shape for name, shape in SHAPES.items() if ".layers.0." in name}
    layers = {f"model.layers.{number}.{name}": shape for number in range(150) for name, shape in block.items()}
    shapes = {name: shape for name, shape in SHAPES.items() if ".layers." not in name} | layers
    hub.add(
        "acme/deep",
        single_file() | {"config.json": json_bytes(config), "model.safetensors": safetensors_bytes(shapes)},
    )
    assert sources.resolve("acme/deep").inventory.blocks == 150


def test_a_server_that_ignores_ranges_is_understood(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/tiny", sharded())
    hub.ignore_ranges = True
    assert sources.resolve("acme/tiny").inventory.total_parameters == PARAMETERS


def test_a_model_that_does_not_exist_is_unknown(sources: ModelSources) -> None:
    error = refusal(sources, "acme/absent")
    assert isinstance(error, UnknownModel)
    assert "'acme/absent'" in error.message


def test_a_revision_that_does_not_exist_is_unknown(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/tiny", single_file())
    error = refusal(sources, "acme/tiny@v9")
    assert isinstance(error, UnknownModel)
    assert "'v9'" in error.message


@pytest.mark.parametrize(
    "reference",
    ["tiny", "a/b/c", "../tiny", "acme/..", "acme/a--b", "acme/" + "x" * 200, "acme/t\u00efny", "acme/tiny\n"],
)
def test_what_is_no_name_is_unknown_without_asking(sources: ModelSources, hub: LoopbackHub, reference: str) -> None:
    assert isinstance(refusal(sources, reference), UnknownModel)
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "../main", "a b", "-x", "a\0b", "x" * 500])
def test_what_is_no_revision_is_unknown_without_asking(sources: ModelSources, hub: LoopbackHub, revision: str) -> None:
    assert isinstance(refusal(sources, f"acme/tiny@{revision}"), UnknownModel)
    assert hub.requests == []


def test_a_gated_model_says_how_to_be_let_in(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/gated", single_file()).gated = True
    error = refusal(sources, "acme/gated")
    assert isinstance(error, UnknownModel)
    assert "gated" in error.message
    assert "MODELPRESS_HUB_TOKEN" in error.message


def test_a_private_model_looks_like_none(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/private", single_file()).private = True
    assert isinstance(refusal(sources, "acme/private"), UnknownModel)


def test_the_token_opens_gated_models_and_goes_to_the_hub_alone(settings: SourceSettings, hub: LoopbackHub) -> None:
    hub.add("acme/gated", single_file()).gated = True
    hub.token = TOKEN
    ModelSources(settings.model_copy(update={"hub_token": SecretStr(TOKEN)}), PATIENCE_SECONDS).resolve("acme/gated")
    assert {seen.authorization for seen in hub.requests if not seen.redirected} == {f"Bearer {TOKEN}"}
    assert {seen.authorization for seen in hub.requests if seen.redirected} == {None}


def test_a_token_of_the_machine_is_not_sent(
    sources: ModelSources, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("acme/tiny", single_file())
    sources.resolve("acme/tiny")
    assert {seen.authorization for seen in hub.requests} == {None}


def test_only_pickles_are_refused(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/old", {"config.json": json_bytes(CONFIG), "pytorch_model.bin": b"\x80\x02"})
    error = refusal(sources, "acme/old")
    assert isinstance(error, NoSafetensors)
    assert "can run code" in error.message


def test_remote_code_is_refused_before_the_weights_are_looked_at(sources: ModelSources, hub: LoopbackHub) -> None:
    config = json_bytes({**CONFIG, "model_type": "evil", "auto_map": {"AutoModel": "modeling.Evil"}})
    hub.add("acme/custom", single_file() | {"config.json": config})
    error = refusal(sources, "acme/custom")
    assert isinstance(error, UnsupportedModel)
    assert "auto_map" in error.message
    assert not any(seen.path.endswith(".safetensors") for seen in hub.requests)


def test_an_unsupported_architecture_is_refused_by_name(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/bert", single_file() | {"config.json": json_bytes({**CONFIG, "model_type": "bert"})})
    error = refusal(sources, "acme/bert")
    assert isinstance(error, UnsupportedModel)
    assert "bert" in error.message


def many_shards(count: int) -> dict[str, bytes]:
    """The files of a model whose weights are spread over so many files with tensors that it does not need."""
    index = {"weight_map": {f"t{number}": f"m-{number}.safetensors" for number in range(count)}}
    files = {f"m-{number}.safetensors": safetensors_bytes({f"t{number}": (8, 8)}) for number in range(count)}
    files |= {"config.json": json_bytes(CONFIG), "model.safetensors.index.json": json_bytes(index)}
    return files


def test_the_headers_of_many_shards_are_bounded_together(
    sources: ModelSources, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelpress.spec.headers.LARGEST_HEADERS", 200)
    hub.add("evil/shards", many_shards(20))
    refused = refusal(sources, "evil/shards")
    assert "headers of the weights have over 200 bytes together" in refused.message


def test_a_model_of_too_many_files_is_refused_before_one_is_read(
    sources: ModelSources, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelpress.spec.headers.MOST_SHARDS", 3)
    hub.add("evil/shards", many_shards(4))
    assert "spread over 4 files" in refusal(sources, "evil/shards").message
    assert not [seen for seen in hub.requests if seen.path.endswith(".safetensors")]


def test_a_hub_that_sends_headers_for_too_long_is_unavailable(
    sources: ModelSources, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sources.checkpoint.REMOTE_SECONDS", -1.0)
    hub.add("evil/slow", sharded())
    with pytest.raises(HubUnavailable, match="too slowly"):
        sources.resolve("evil/slow")


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "absent.safetensors"]
)
def test_a_hostile_index_is_refused(sources: ModelSources, hub: LoopbackHub, place: str) -> None:
    index = json_bytes({"weight_map": dict.fromkeys(SHAPES, place) | {"x": "model-1.safetensors"}})
    files = sharded() | {"model.safetensors.index.json": index, "sub/x.safetensors": safetensors_bytes(SHAPES)}
    hub.add("acme/evil", files)
    assert isinstance(refusal(sources, "acme/evil"), InvalidModel)


def test_a_header_that_claims_too_much_is_refused(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/evil", single_file() | {"model.safetensors": b"\xff" * 8 + b"{}"})
    assert isinstance(refusal(sources, "acme/evil"), InvalidModel)


@pytest.mark.parametrize("size", [0, 7, 10**6, 2**62])
def test_a_size_that_lies_is_refused(sources: ModelSources, hub: LoopbackHub, size: int) -> None:
    hub.add("acme/evil", single_file()).sizes["model.safetensors"] = size
    assert isinstance(refusal(sources, "acme/evil"), InvalidModel)


def test_a_missing_config_is_refused(sources: ModelSources, hub: LoopbackHub) -> None:
    hub.add("acme/bare", {"model.safetensors": safetensors_bytes(SHAPES)})
    assert isinstance(refusal(sources, "acme/bare"), InvalidModel)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_hub_is_unavailable(sources: ModelSources, hub: LoopbackHub, status: int) -> None:
    hub.status = status
    with pytest.raises(HubUnavailable, match=str(status)):
        sources.resolve("acme/tiny")
    assert len(hub.requests) == 1


def test_a_hub_that_is_down_is_unavailable_without_the_timeout(settings: SourceSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    down = settings.model_copy(update={"hub_endpoint": f"http://127.0.0.1:{port}"})
    sources = ModelSources(down, PATIENCE_SECONDS)
    started = time.monotonic()
    with pytest.raises(HubUnavailable):
        sources.resolve("acme/tiny")
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_a_hub_that_says_nothing_is_unavailable_after_the_timeout(hub: LoopbackHub) -> None:
    hub.delay_seconds = 3
    with pytest.raises(HubUnavailable, match="reached"):
        Hub(hub.endpoint, None, timeout_seconds=0.1).repository("model", "acme/tiny")


def test_something_else_than_a_hub_is_unavailable(settings: SourceSettings, hub: LoopbackHub) -> None:
    hub.status = 200
    with pytest.raises(HubUnavailable):
        ModelSources(settings, PATIENCE_SECONDS).resolve("acme/tiny")


def test_a_service_without_a_hub_says_what_to_send(settings: SourceSettings, hub: LoopbackHub) -> None:
    error = refusal(ModelSources(settings.model_copy(update={"hub_enabled": False})), "acme/tiny")
    assert isinstance(error, UnknownModel)
    assert "local:" in error.message
    assert hub.requests == []


def test_nothing_is_left_in_the_temporary_directory(
    sources: ModelSources, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub.add("acme/tiny", sharded())
    sources.resolve("acme/tiny")
    assert list(tmp_path.glob("modelpress-*")) == []


@pytest.mark.parametrize(
    ("skipped", "wanted", "expected"),
    [(0, 9, b"abcdefghi"), (0, 2, b"ab"), (2, 3, b"cde"), (4, 99, b"efghi"), (9, 1, b"")],
)
def test_a_part_of_an_answer_is_cut_out_exactly(skipped: int, wanted: int, expected: bytes) -> None:
    assert b"".join(part(iter([b"abc", b"def", b"ghi"]), skipped, wanted)) == expected


def test_a_model_without_a_tokenizer_is_refused_before_it_is_downloaded(
    sources: ModelSources, hub: LoopbackHub
) -> None:
    files = {name: content for name, content in single_file().items() if name != "tokenizer.json"}
    hub.add("acme/mute", files | {"tokenizer_config.json": b"{}"})
    assert isinstance(refusal(sources, "acme/mute"), NoTokenizer)


def test_of_two_layouts_of_weights_the_single_file_is_read_as_transformers_does(
    sources: ModelSources, hub: LoopbackHub
) -> None:
    hub.add("acme/both", sharded() | single_file())
    sources.resolve("acme/both")
    read = {seen.path.rpartition("/")[2] for seen in hub.requests if seen.path.endswith(".safetensors")}
    assert read == {"model.safetensors"}
