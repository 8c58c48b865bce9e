"""The id of a protocol changes with whatever would make numbers incomparable, and with nothing else."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers.compression.evaluation.protocol import EvaluationProtocol, protocol_of

VOCABULARY = {"a": 0, "b": 1}
WINDOWS = torch.arange(12).view(3, 4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("ab" * 6)
    return path


def protocol(
    corpus: Path, windows: Tensor = WINDOWS, vocabulary: Mapping[str, int] = VOCABULARY, max_tokens: int = 12
) -> EvaluationProtocol:
    return protocol_of(corpus, vocabulary, windows, max_tokens=max_tokens)


def test_the_same_measurement_has_the_same_id_wherever_the_text_lies(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(corpus.read_bytes())
    assert protocol(copy, vocabulary=dict(reversed(VOCABULARY.items()))).id == protocol(corpus).id


def test_its_parts_are_spelled_out(corpus: Path) -> None:
    found = protocol(corpus)
    assert (found.window, found.stride, found.max_tokens) == (4, 4, 12)
    assert len({found.corpus, found.tokenizer, found.tokens}) == 3
    assert len(found.id) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"windows": WINDOWS.view(2, 6)},
        {"windows": WINDOWS.flip(1)},
        {"vocabulary": {"a": 1, "b": 0}},
        {"max_tokens": 13},
    ],
)
def test_another_cut_tokenizer_or_limit_gives_another_id(corpus: Path, change: dict[str, object]) -> None:
    assert protocol(corpus, **change).id != protocol(corpus).id


def test_another_text_gives_another_id(corpus: Path) -> None:
    before = protocol(corpus).id
    corpus.write_text("ab" * 6 + " ")
    assert protocol(corpus).id != before
