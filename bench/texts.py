"""Named pieces of text, as token ids."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.sources.python_docs import evaluation_documents
from bench.experiment import Strict
from workers.compression.drawing import evenly_spread
from workers.compression.teacher_text import sample

PYTHON_DOCS = "python-docs"
TEACHER = "teacher:"


class Piece(Strict):
    """A part of a text: `source` is a file in the data directory, 'python-docs', or 'teacher:' for text that the
    original model writes itself."""

    source: str
    start: float = Field(0.0, ge=0, lt=1, description="where the part begins, as a share of the text")
    stop: float = Field(1.0, gt=0, le=1, description="where it ends")

    def read(self, data: Path) -> str:
        """Return the source's whole text. Raises ValueError for text that a model has to write."""
        if self.source == TEACHER:
            raise ValueError(f"{TEACHER} is no file")
        if self.source == PYTHON_DOCS:
            return "\n\n".join(evaluation_documents())
        return detokenised((data / self.source).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Reader:
    """Gives the pieces of an experiment as windows of token ids.

    `pieces` are the experiment's texts by name; `model`, the original, writes those of the source 'teacher:'.
    """

    pieces: Mapping[str, Piece]
    data: Path
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    seed: int

    def windows(self, name: str, count: int, length: int) -> Tensor:
        """Return `count` windows [count, length] that are spread evenly over the piece of that name."""
        piece = self.pieces[name]
        if piece.source == TEACHER:
            return torch.cat(list(sample(self.model, self.tokenizer, count, length, seed=self.seed)))
        every = all_windows(self.tokenizer, piece.read(self.data), length)
        return evenly_spread(every[int(piece.start * len(every)) : int(piece.stop * len(every))], count)

    def mixture(self, names: tuple[str, ...], count: int, length: int) -> Tensor:
        """Return windows [about `count`, length] of several pieces, equally many of each, one piece after another."""
        each = -(-count // len(names))
        return torch.cat([self.windows(name, each, length) for name in names])


def all_windows(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Tensor:
    """Return the text as whole windows [N, length]; what is left over at the end is dropped."""
    call: Any = tokenizer
    ids = torch.tensor(call(text, verbose=False)["input_ids"])
    return ids[: len(ids) // length * length].view(-1, length)


def detokenised(text: str) -> str:
    """Undo the word tokenisation of WikiText; other text has nothing of the kind and stays as it is."""
    text = re.sub(r" @([-,.])@ ", r"\1", text).replace("<unk>", "unk")
    return re.sub(r"([(\[]) ", r"\1", re.sub(r" ([.,;:!?)\]])", r"\1", text))
