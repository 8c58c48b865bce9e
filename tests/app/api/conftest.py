"""The API in front of a real database and a real broker, a model small enough to post, and a job that has succeeded."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.contract.job import Comparison, Metrics, Source
from app.contract.recipe import Recipe
from app.db import Sessions
from app.jobs import store
from app.main import create_app
from app.settings import Settings
from app.storage.local import ArtifactStore

BODY = {"model": "local:tiny", "target_ratio": 1.2}
CONTENTS = {
    "README.md": b"# tiny\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 9000 + b"end",
    "plots/loss.svg": b"<svg/>",
}
HIDDEN, INNER, VOCABULARY, BLOCKS = 64, 128, 256, 2


@dataclass(frozen=True)
class Finished:
    """A succeeded job and the contents of its files."""

    id: str
    contents: dict[str, bytes]


@pytest.fixture
def client(settings: Settings, engine: Engine, model_root: Path) -> Iterator[TestClient]:
    write_model(model_root / "tiny")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def finished(settings: Settings, sessions: Sessions, tmp_path: Path) -> Finished:
    """A job with published files, taken through its states by the statements that the worker uses."""
    recipe = Recipe(model="local:tiny", target_ratio=1.2)
    source = Source(reference="local:tiny", model_type="llama", parameters=1000)
    package = tmp_path / "package"
    for name, content in CONTENTS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(content)
    files = ArtifactStore(settings.artifacts_dir).publish("job_done", 1, package)
    with sessions.begin() as session:
        store.submit(session, "job_done", recipe, source, max_attempts=3)
        assert store.claim(session, "job_done", "worker", lease_seconds=60) is not None
        assert store.finish(session, "job_done", 1, 1.2, Comparison(before=metrics(), after=metrics()), files)
    return Finished("job_done", CONTENTS)


def metrics() -> Metrics:
    return Metrics(
        parameters=1000,
        bytes=2000,
        perplexity={"builtin:python-docs-test": 20.0},
        prefill_tokens_per_second=100.0,
        decode_tokens_per_second=10.0,
        sample="Once",
    )


def write_model(directory: Path) -> None:
    """A Llama checkpoint of zeros, complete enough for its config and headers to be accepted."""
    directory.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes().items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))


def shapes() -> dict[str, tuple[int, ...]]:
    every = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    block = {f"self_attn.{site}_proj": (HIDDEN, HIDDEN) for site in "qkvo"} | {
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    for number in range(BLOCKS):
        every |= {f"model.layers.{number}.{name}.weight": shape for name, shape in block.items()}
    return every
