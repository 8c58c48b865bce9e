"""What is carried over from a GGUF file that transformers' own reader leaves out."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workers.compression.models.gguf import split_digits


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
