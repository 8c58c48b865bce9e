"""What a measurement was made on: two numbers are comparable where their protocols have the same id.

    protocol_of(path, tokenizer.get_vocab(), windows, max_tokens=20_480).id      # 'b3a61c09f2d47e58'

Promise: the id depends on the text, the tokenizer and how the text was cut, and neither on the model's weights, its
precision or its place, nor on the releases of any library that give the same tokens.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workers.compression.spec.files import file_sha256

_ID_DIGITS = 16


@dataclass(frozen=True)
class Protocol:
    """`corpus`, `tokenizer` and `tokens` are SHA-256 in hexadecimal: of the text's bytes, of the vocabulary, and of the
    token ids that were measured, window after window. A window starts `stride` tokens behind the one before it; at most
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
        return _digest(dataclasses.asdict(self))[:_ID_DIGITS]


def protocol_of(corpus: Path, vocabulary: Mapping[str, int], windows: Tensor, *, max_tokens: int) -> Protocol:
    """The protocol of token ids `windows` [W, T], which do not overlap, cut from the file `corpus`.

    The vocabulary alone does not say how text is split into it; what it did to this text is in `tokens`.
    """
    length = windows.shape[1]
    tokens = hashlib.sha256(windows.cpu().numpy().astype("<i8").tobytes()).hexdigest()
    return Protocol(file_sha256(corpus), _digest(dict(vocabulary)), tokens, length, length, max_tokens)


def _digest(described: object) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
