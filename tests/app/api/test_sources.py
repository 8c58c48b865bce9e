"""Which models and texts a recipe can name here."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient


def listed(client: TestClient, path: str) -> list[str]:
    found: list[str] = client.get(path).json()["references"]
    return found


def test_every_listed_model_and_text_can_be_posted(client: TestClient, tiny: dict[str, Any], model_root: Path) -> None:
    (model_root / "team").mkdir()
    (model_root / "tiny").rename(model_root / "team" / "tiny")

    (model,) = listed(client, "/models")
    assert model == "local:team/tiny"
    texts = listed(client, "/datasets")
    assert texts == [
        "builtin:python-docs",
        "builtin:python-docs-test",
        "local:calibration.txt",
        "local:evaluation.txt",
    ]
    assert client.post("/jobs", json=tiny | {"model": model}).status_code == 202


def test_of_a_very_large_directory_only_a_part_is_looked_at(
    client: TestClient, tiny: dict[str, Any], model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sources.shelf.MOST_LOOKED_AT", 10)
    (model_root / "a").mkdir()
    for number in range(20):
        (model_root / "a" / f"{number}.bin").touch()
        (model_root / "a" / f"{number}").mkdir()
    (model_root / "a" / "found.gguf").touch()
    assert listed(client, "/models") == ["local:tiny"]


def test_what_would_be_refused_is_not_listed(client: TestClient, model_root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").touch()
    (model_root / "link").symlink_to(outside)
    (model_root / ".hidden").mkdir()
    (model_root / ".hidden" / "config.json").touch()
    (model_root / "notes.txt").touch()

    assert listed(client, "/models") == []


def test_gguf_files_are_models_and_hub_is_told(client: TestClient, model_root: Path) -> None:
    (model_root / "small.gguf").touch()

    assert client.get("/models").json() == {"references": ["local:small.gguf"], "hub": False}
