"""What a student's logits cost and their gradient, in closed form, so that few things as large as the logits are held.

Distributions are softmax(logits / temperature); the divergences are temperature² · KL(teacher ‖ student), which keeps
the size of the gradients (Hinton et al., arXiv 1503.02531). Every function takes logits [n, V] of any floating dtype,
computes in float32 and gives the sum over tokens, in nats, with its gradient [n, V].
"""

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
    """The `k` largest logarithms of probabilities of n tokens, [n, k] float32, which ones they are, [n, k], and the
    logarithm of what all others have together, [n]: -inf where there are no others."""

    values: Tensor
    places: Tensor
    tail: Tensor

    def __getitem__(self, tokens: slice) -> "TopLogits":
        return TopLogits(self.values[tokens], self.places[tokens], self.tail[tokens])


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Cost:
    """Of the teacher's logits [n, V] and the student's."""
    ours, theirs = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    probabilities = theirs.exp()
    loss = torch.linalg.vecdot(probabilities, theirs.sub_(ours)).sum() * temperature**2
    return Cost(loss, ours.exp_().sub_(probabilities).mul_(temperature))


def top_divergence(student: Tensor, teacher: TopLogits, temperature: float) -> Cost:
    """The same with all tokens but the teacher's likeliest in one bucket, whose probabilities are summed.

    Where the bucket is empty this is `divergence` itself; it is never more than that.
    """
    ours = _log_softmax(student, temperature)
    kept = ours.gather(-1, teacher.places)
    ours = ours.exp_()
    rest = ours.scatter(-1, teacher.places, 0).sum(-1).clamp_min(_TINY)
    shared, tail = teacher.values.exp(), teacher.tail.exp()
    of_tail = torch.where(tail > 0, tail * (teacher.tail - rest.log()), 0)
    loss = (torch.linalg.vecdot(shared, teacher.values - kept) + of_tail).sum() * temperature**2
    gradient = ours.mul_((1 - tail / rest)[:, None])
    gradient.scatter_(-1, teacher.places, kept.exp_().sub_(shared))
    return Cost(loss, gradient.mul_(temperature))


def cross_entropy(student: Tensor, labels: Tensor) -> Cost:
    """Of the tokens that do follow, `labels` [n]; a token without a successor is labelled -1 and costs nothing."""
    ours = _log_softmax(student, 1.0)
    known = labels >= 0
    places = labels.clamp_min(0)[:, None]
    loss = -(ours.gather(-1, places).squeeze(-1) * known).sum()
    gradient = ours.exp_().scatter_add_(-1, places, -torch.ones_like(places, dtype=torch.float32))
    return Cost(loss, gradient.mul_(known[:, None]))


def top_logits(teacher: Tensor, k: int, temperature: float) -> TopLogits:
    """What `top_divergence` needs of the teacher's logits [n, V]; with k ≥ V that is everything."""
    theirs = _log_softmax(teacher, temperature)
    values, places = theirs.topk(min(k, theirs.shape[-1]), dim=-1)
    tail = theirs.exp_().scatter_(-1, places, 0).sum(-1).log()
    return TopLogits(values, places, tail)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared error of each state over its squared norm, summed over tokens; both [..., E]. Gradients pass."""
    wanted = teacher.float()
    lost = (student.float() - wanted).square().sum(-1)
    return (lost / wanted.square().sum(-1).clamp_min(_TINY)).sum()


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """A new tensor in float32."""
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    return torch.log_softmax(scaled, dim=-1)
