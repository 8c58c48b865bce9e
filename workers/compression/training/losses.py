"""What a student's logits cost and their gradient, in closed form, so that few things as large as the logits are held.

Distributions are softmax(logits / temperature); the divergences are temperature² · KL(teacher ‖ student), which keeps
the size of the gradients (Hinton et al., arXiv 1503.02531). Every function takes logits [n, V] of any floating dtype,
computes in float32 and gives the sum over tokens, in nats, with its gradient [n, V].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


class Cost(NamedTuple):
    """A loss, summed over tokens, and its gradient with respect to the logits [n, V]."""

    loss: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class TopLogits:
    """The likeliest tokens of n distributions: the logarithms of their probabilities, [n, k] float32 descending, which
    ones they are, [n, k], and the logarithm of what all others have together, [n]: -inf where there are no others."""

    values: Tensor
    places: Tensor
    tail: Tensor

    @classmethod
    def joined(cls, parts: Sequence["TopLogits"]) -> "TopLogits":
        """All parts' tokens one after another."""
        values, places, tails = zip(*((part.values, part.places, part.tail) for part in parts), strict=True)
        return cls(torch.cat(values), torch.cat(places), torch.cat(tails))

    def __getitem__(self, tokens: slice) -> "TopLogits":
        return TopLogits(self.values[tokens], self.places[tokens], self.tail[tokens])


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Cost:
    """Of the teacher's logits [n, V] and the student's."""
    ours, theirs = _Softmax.of(student, temperature), _Softmax.of(teacher, temperature)
    apart = theirs.exponents.sub_(ours.exponents).mul_(theirs.probabilities).sum(-1)
    loss = (apart - theirs.normaliser + ours.normaliser).sum() * temperature**2
    return Cost(loss, ours.probabilities.sub_(theirs.probabilities).mul_(temperature))


def top_divergence(student: Tensor, teacher: TopLogits, temperature: float) -> Cost:
    """The same with all tokens but the teacher's likeliest in one bucket, whose probabilities are summed.

    Where the bucket is empty this is `divergence` itself; it is never more than that.
    """
    ours = _Softmax.of(student, temperature)
    kept = ours.exponents.gather(-1, teacher.places) - ours.normaliser[:, None]
    rest = ours.probabilities.scatter(-1, teacher.places, 0).sum(-1).clamp_min(_TINY)
    shared, tail = teacher.values.exp(), teacher.tail.exp()
    of_tail = torch.where(tail > 0, tail * (teacher.tail - rest.log()), 0)
    loss = (((teacher.values - kept) * shared).sum(-1) + of_tail).sum() * temperature**2
    gradient = ours.probabilities.mul_((1 - tail / rest)[:, None])
    gradient.scatter_(-1, teacher.places, kept.exp_().sub_(shared))
    return Cost(loss, gradient.mul_(temperature))


def cross_entropy(student: Tensor, labels: Tensor) -> Cost:
    """Of the tokens that do follow, `labels` [n]; a token without a successor is labelled -1 and costs nothing."""
    ours = _Softmax.of(student, 1.0)
    known, places = labels >= 0, labels.clamp_min(0)[:, None]
    loss = ((ours.normaliser - ours.exponents.gather(-1, places).squeeze(-1)) * known).sum()
    gradient = ours.probabilities.scatter_add_(-1, places, -torch.ones_like(places, dtype=torch.float32))
    return Cost(loss, gradient.mul_(known[:, None]))


def top_logits(teacher: Tensor, k: int, temperature: float) -> TopLogits:
    """What `top_divergence` needs of the teacher's logits [n, V]; with k ≥ V that is everything."""
    theirs = _Softmax.of(teacher, temperature)
    largest, places = theirs.exponents.topk(min(k, teacher.shape[-1]), dim=-1)
    tail = theirs.probabilities.scatter_(-1, places, 0).sum(-1).log()
    return TopLogits(largest - theirs.normaliser[:, None], places, tail)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared error of each state over its squared norm, summed over tokens; both [..., E]. Gradients pass."""
    wanted = teacher.float()
    lost = (student.float() - wanted).square().sum(-1)
    return (lost / wanted.square().sum(-1).clamp_min(_TINY)).sum()


class _Softmax(NamedTuple):
    """Distributions in float32: probabilities = exp(exponents - normaliser), [n, V], [n, V] and [n]."""

    exponents: Tensor
    probabilities: Tensor
    normaliser: Tensor

    @classmethod
    def of(cls, logits: Tensor, temperature: float) -> "_Softmax":
        exponents = logits.to(torch.float32, copy=True)
        if temperature != 1.0:
            exponents /= temperature
        probabilities = exponents.softmax(-1)
        # From the likeliest token, because log_softmax beside softmax would go through all exponentials again.
        return cls(exponents, probabilities, exponents.amax(-1) - probabilities.amax(-1).log())
