"""Requests to fetch a tiny model from a hub on the loopback interface."""

from collections.abc import Callable
from pathlib import Path

from tests.support.checkpoints import CONFIG, SHAPES, json_bytes, safetensors_bytes, single_file
from workers.fetch import FetchReport, FetchRequest

NAME = "acme/tiny"
BIG = {**SHAPES, "model.embed_tokens.weight": (32 * 1000, 8)}
BIG_FILES = single_file() | {
    "config.json": json_bytes({**CONFIG, "vocab_size": 32 * 1000}),
    "model.safetensors": safetensors_bytes(BIG),
}

MakeRequest = Callable[..., FetchRequest]


def silent(report: FetchReport) -> None:
    """Nobody listens."""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
