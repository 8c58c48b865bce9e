"""Loss functions of a student's logits and their gradients, in closed form so that few tensors of that size exist.

Distributions are softmax(logits / temperature); divergences are temperature² · KL(teacher ‖ student), which keeps the
size of the gradients (Hinton et al., arXiv 1503.02531). Functions of logits take [n, V] in any floating dtype, compute
in float32, and return the loss in nats, summed over the n tokens, with its gradient [n, V].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


class Loss(NamedTuple):
    """A loss in nats, summed over tokens, and its gradient [n, V] with respect to the logits."""

    value: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class TopLogits:
    """The k likeliest tokens of each of n distributions.

    Attributes:
        values: log-probabilities [n, k] in float32, descending.
        places: the tokens' ids [n, k].
        tail: logarithm [n] of the probability of all other tokens together; -inf where there are none.
    """

    values: Tensor
    places: Tensor
    tail: Tensor

    @classmethod
    def joined(cls, parts: Sequence["TopLogits"]) -> "TopLogits":
        """Concatenate the distributions of all parts."""
        values, places, tails = zip(*((part.values, part.places, part.tail) for part in parts), strict=True)
        return cls(torch.cat(values), torch.cat(places), torch.cat(tails))

    def __getitem__(self, tokens: slice) -> "TopLogits":
        return TopLogits(self.values[tokens], self.places[tokens], self.tail[tokens])


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Loss:
    """Return temperature² · KL(teacher ‖ student) of logits [n, V] each."""
    ours, theirs = _Softmax.of(student, temperature), _Softmax.of(teacher, temperature)
    apart = theirs.exponents.sub_(ours.exponents).mul_(theirs.probabilities).sum(-1)
    value = (apart - theirs.normaliser + ours.normaliser).sum() * temperature**2
    return Loss(value, ours.probabilities.sub_(theirs.probabilities).mul_(temperature))


def top_divergence(student: Tensor, teacher: TopLogits, temperature: float) -> Loss:
    """Return `divergence` with all tokens but the teacher's likeliest merged into one bucket of summed probability.

    The result is never above `divergence`, and equals it where the bucket is empty.
    """
    ours = _Softmax.of(student, temperature)
    kept = ours.exponents.gather(-1, teacher.places) - ours.normaliser[:, None]
    rest = ours.probabilities.scatter(-1, teacher.places, 0).sum(-1).clamp_min(_TINY)
    shared, tail = teacher.values.exp(), teacher.tail.exp()
    of_tail = torch.where(tail > 0, tail * (teacher.tail - rest.log()), 0)
    value = (((teacher.values - kept) * shared).sum(-1) + of_tail).sum() * temperature**2
    gradient = ours.probabilities.mul_((1 - tail / rest)[:, None])
    gradient.scatter_(-1, teacher.places, kept.exp_().sub_(shared))
    return Loss(value, gradient.mul_(temperature))


def cross_entropy(student: Tensor, labels: Tensor) -> Loss:
    """Return the cross entropy of the next tokens `labels` [n]; a token with label -1 has none and costs nothing."""
    ours = _Softmax.of(student, 1.0)
    known, places = labels >= 0, labels.clamp_min(0)[:, None]
    value = ((ours.normaliser - ours.exponents.gather(-1, places).squeeze(-1)) * known).sum()
    gradient = ours.probabilities.scatter_add_(-1, places, -torch.ones_like(places, dtype=torch.float32))
    return Loss(value, gradient.mul_(known[:, None]))


def top_logits(teacher: Tensor, k: int, temperature: float) -> TopLogits:
    """Return what `top_divergence` needs of the teacher's logits [n, V]; with k ≥ V that is everything."""
    theirs = _Softmax.of(teacher, temperature)
    largest, places = theirs.exponents.topk(min(k, teacher.shape[-1]), dim=-1)
    tail = theirs.probabilities.scatter_(-1, places, 0).sum(-1).log()
    return TopLogits(largest - theirs.normaliser[:, None], places, tail)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return |student - teacher|² / |teacher|² [...] in float32 for states [..., E] each. Differentiable."""
    wanted = teacher.float()
    squared = (student.float() - wanted).square().sum(-1)
    return squared / wanted.square().sum(-1).clamp_min(_TINY)


class _Softmax(NamedTuple):
    """Distributions in float32: probabilities = exp(exponents - normaliser), [n, V], [n, V] and [n]."""

    exponents: Tensor
    probabilities: Tensor
    normaliser: Tensor

    @classmethod
    def of(cls, logits: Tensor, temperature: float) -> "_Softmax":
        """Return softmax(logits / temperature) of logits [n, V], which stay unchanged."""
        exponents = logits.to(torch.float32, copy=True)
        if temperature != 1.0:
            exponents /= temperature
        probabilities = exponents.softmax(-1)
        # From the likeliest token, because log_softmax beside softmax would go through all exponentials again.
        return cls(exponents, probabilities, exponents.amax(-1) - probabilities.amax(-1).log())
