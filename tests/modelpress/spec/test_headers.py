"""Safetensors headers are read without torch, and nothing that lies is believed."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelpress.spec.errors import MalformedModel, MissingWeights
from modelpress.spec.headers import read_safetensors_headers, stored_tensors


def write_safetensors(path: Path, header: dict[str, Any] | str, data: bytes, length: int | None = None) -> Path:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data)
    return path


def entry(*shape: int, begin: int = 0, end: int | None = None, dtype: str = "F32") -> dict[str, Any]:
    size = 4
    for extent in shape:
        size *= extent
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size if end is None else end]}


def write_shards(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_names_and_shapes_are_read(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": entry(2, 3), "b": entry(1, begin=24)}
    write_safetensors(tmp_path / "model.safetensors", header, bytes(28))
    assert read_safetensors_headers(tmp_path) == {"a": (2, 3), "b": (1,)}


@pytest.mark.parametrize(
    ("header", "data", "complaint"),
    [
        ({"a": entry(2)}, bytes(4), "fill 8 bytes"),
        ({"a": entry(2)}, bytes(12), "fill 8 bytes"),
        ({"a": entry(2), "b": entry(2, begin=4)}, bytes(12), "overlap"),
        ({"a": entry(2), "b": entry(1, begin=12)}, bytes(16), "holes"),
        ({"a": entry(2, end=4)}, bytes(4), "does not fit its shape"),
        ({"a": entry(2, dtype="F33")}, bytes(8), "does not describe"),
        ({"a": entry(-1, end=4)}, bytes(4), "does not describe"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4), "does not describe"),
        ({"a": 3}, b"", "does not describe"),
        ('{"a": ' * 5000, b"", "JSON"),
        ("[1]", b"", "JSON object"),
        ('{"a": 1, "a": 2}', b"", "twice"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, data: bytes, complaint: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", header, data)
    with pytest.raises(MalformedModel, match=complaint):
        read_safetensors_headers(tmp_path)


def test_an_announced_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": entry(1)}, bytes(4), length=2**40)
    with pytest.raises(MalformedModel, match="cut short"):
        read_safetensors_headers(tmp_path)


def test_a_directory_without_weights_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="only safetensors"):
        read_safetensors_headers(tmp_path)


def test_shards_are_joined_by_the_index(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": entry(2)}, bytes(8))
    write_safetensors(tmp_path / "two.safetensors", {"b": entry(3)}, bytes(12))
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert {name: tensor.file.name for name, tensor in stored_tensors(tmp_path).items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/one.safetensors", "one.bin", "", 3])
def test_an_index_cannot_name_anything_but_a_neighbour(name: Any, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    write_safetensors(tmp_path / "secret.safetensors", {"a": entry(2)}, bytes(8))
    write_shards(directory, {"a": name})
    with pytest.raises(MalformedModel, match="plain file name"):
        read_safetensors_headers(directory)


def test_an_index_that_misplaces_a_tensor_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": entry(2)}, bytes(8))
    write_shards(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(MalformedModel, match="does not hold it"):
        read_safetensors_headers(tmp_path)


def test_headers_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelpress.spec.headers.LARGEST_HEADERS", 100)
    for name in ("one", "two"):
        write_safetensors(tmp_path / f"{name}.safetensors", {name: entry(2)}, bytes(8))
    write_shards(tmp_path, {"one": "one.safetensors", "two": "two.safetensors"})
    with pytest.raises(MalformedModel, match="have over 100 bytes together"):
        stored_tensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"a": entry(2), name: entry(1, begin=8)}, bytes(12))
    write_shards(tmp_path, {"a": "one.safetensors", "two": "two.safetensors"})
    with pytest.raises(MalformedModel, match="stored twice"):
        read_safetensors_headers(tmp_path)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    blob = write_safetensors(tmp_path / "blob", {"a": entry(2)}, bytes(8))
    directory = tmp_path / "snapshot"
    directory.mkdir()
    (directory / "model.safetensors").symlink_to(blob)
    with pytest.raises(MalformedModel, match="leaves the model's directory"):
        read_safetensors_headers(directory)


def test_a_directory_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(MalformedModel, match="regular file"):
        read_safetensors_headers(tmp_path)


def test_a_single_file_comes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": entry(2)}, bytes(8))
    write_safetensors(tmp_path / "old.safetensors", {"a": entry(3)}, bytes(12))
    write_shards(tmp_path, {"a": "old.safetensors"})
    assert read_safetensors_headers(tmp_path) == {"a": (2,)}


def test_links_of_a_snapshot_may_lead_to_the_blobs_of_its_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models--acme--tiny"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blob = write_safetensors(repository / "blob", {"a": entry(2)}, bytes(8))
    (snapshot / "model.safetensors").symlink_to(blob)
    assert read_safetensors_headers(snapshot) == {"a": (2,)}


@pytest.mark.parametrize("name", ["x" * 300, f"model.layers.{'9' * 5000}.weight"])
def test_a_name_that_no_tensor_has_is_refused(name: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {name: entry(2)}, bytes(8))
    with pytest.raises(MalformedModel, match="names a tensor"):
        read_safetensors_headers(tmp_path)


def test_a_header_of_too_many_values_is_refused_unparsed(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", "[" + "0," * 2_000_001 + "0]", b"")
    with pytest.raises(MalformedModel, match="values"):
        read_safetensors_headers(tmp_path)
