"""Judge GGUF files by what llama.cpp computes with them.

reference = Reference.of(model, windows, scratch / "reference.npy")
reference.judged(path)              # divergence, perplexity, agreement
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.experiment import Strict
from workers.compression.engines.ask import Questions, ask
from workers.compression.models.streamed import StreamedModel

TOGETHER = 1024
"""Tokens whose log-probabilities are compared at a time."""


class Judged(Strict):
    """How far a model's predictions are from the original's."""

    divergence: float
    perplexity: float
    agreement: float


@dataclass(frozen=True)
class Reference:
    """The original's logits [N, T, V], in a file, for token ids [N, T]."""

    windows: Tensor
    logits: NDArray[np.float32]

    @classmethod
    @torch.no_grad()
    def of(cls, model: StreamedModel, windows: Tensor, path: Path) -> "Reference":
        """Compute the original's logits, one window at a time."""
        whole = model.whole()
        shape = (*windows.shape, model.inventory.vocab_size)
        logits = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for row, ids in zip(logits, windows, strict=True):
            row[:] = whole(input_ids=ids[None], use_cache=False).logits[0].float().numpy()
        return cls(windows, logits)

    def judged(self, file: Path) -> Judged:
        """Compute a GGUF file's logits in llama.cpp, as a server would, and compare them.

        `perplexity` is a ratio to the original's. The first token of each window is context only. Raises EngineError.
        """
        sums = np.zeros(4)
        for ids, original in zip(self.windows, self.logits, strict=True):
            asked = Questions(ids=ids[None].numpy(), exact=False, threads=torch.get_num_threads())
            with ask(file, asked) as answers:
                assert answers.logits is not None, "they were asked for"
                sums += _sums(ids, torch.from_numpy(original), torch.from_numpy(answers.logits[0].copy()))
        tokens = len(self.windows) * (self.windows.shape[1] - 1)
        divergence, before, after, agreement = (sums / tokens).tolist()
        return Judged(divergence=max(divergence, 0.0), perplexity=math.exp(after - before), agreement=agreement)


def _sums(ids: Tensor, original: Tensor, found: Tensor) -> NDArray[np.float64]:
    """Return divergence, both negative log-likelihoods and agreement of logits [T, V], summed over predicted tokens."""
    total = torch.zeros(4, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(ids) - 1), TOGETHER):
        p, q = original[rows].log_softmax(-1), found[rows].log_softmax(-1)
        following = ids[rows + 1, None]
        total += torch.stack(
            [
                (p.exp() * (p - q)).sum(dtype=torch.float64),
                -p.gather(-1, following).sum(dtype=torch.float64),
                -q.gather(-1, following).sum(dtype=torch.float64),
                (p.argmax(-1) == q.argmax(-1)).sum(dtype=torch.float64),
            ]
        )
    return total.numpy()
