"""What is carried over from a GGUF file that transformers' own reader leaves out."""

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelpress.spec.headers import read_safetensors_headers
from tests.support.checkpoints import SHAPES, write_gguf
from workers.compression.models.gguf import convert_gguf, split_digits


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("in 1999", ["in", "Ġ", "1", "9", "9", "9"]),
        ("a1b", ["a", "1", "b"]),
        ("no digits", ["no", "Ġdigits"]),
    ],
)
def test_a_vocabulary_with_single_digits_never_joins_them(text: str, pieces: list[str]) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    split_digits(tokenizer)
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in found] == pieces


def test_a_file_is_read_whose_directory_may_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    path = write_gguf(tmp_path / "models" / "tiny.gguf")
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, _refusing(path.parent, getattr(os, name)))
    convert_gguf(path, tmp_path / "converted")
    assert read_safetensors_headers(tmp_path / "converted") == SHAPES


def _refusing(directory: Path, listing: Any) -> Any:
    """Return the function `listing`, but for one directory, as the cage of a job refuses it."""

    def refuse(path: Any = ".") -> Any:
        if not isinstance(path, int) and Path(os.fsdecode(path)).resolve() == directory.resolve():
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    return refuse
