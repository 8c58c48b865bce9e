"""The evaluation protocol of a measurement: two figures are comparable if their protocols have the same id.

    protocol_of(path, tokenizer.get_vocab(), windows, max_tokens=20_480).id      # 'b3a61c09f2d47e58'

Promise: the id depends on the text, the tokenizer and how the text was cut into windows. It does not depend on the
model's weights, precision or location, nor on library releases that give the same tokens.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from modelpress.spec.files import file_sha256

_ID_DIGITS = 16


@dataclass(frozen=True)
class EvaluationProtocol:
    """Text, tokenizer and windows of a measurement.

    `corpus`, `tokenizer` and `tokens` are SHA-256 in hexadecimal of the text's bytes, of the vocabulary, and of the
    measured token ids, window after window. Windows of `window` tokens start `stride` tokens apart; at most
    `max_tokens` of the text were used.
    """

    corpus: str
    tokenizer: str
    tokens: str
    window: int
    stride: int
    max_tokens: int

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 over all fields."""
        return _digest(dataclasses.asdict(self))[:_ID_DIGITS]


def protocol_of(corpus: Path, vocabulary: Mapping[str, int], windows: Tensor, *, max_tokens: int) -> EvaluationProtocol:
    """Return the protocol of non-overlapping windows of token ids [W, T] cut from the file `corpus`.

    The vocabulary alone does not determine how a text is tokenised; the digest of the token ids covers that.
    """
    length = windows.shape[1]
    tokens = hashlib.sha256(windows.cpu().numpy().astype("<i8").tobytes()).hexdigest()
    return EvaluationProtocol(file_sha256(corpus), _digest(dict(vocabulary)), tokens, length, length, max_tokens)


def _digest(described: object) -> str:
    """Return the SHA-256 of a value's JSON form with sorted keys."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
