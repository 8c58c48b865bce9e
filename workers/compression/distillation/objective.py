"""The loss of a batch of windows and its gradients, made slice by slice so that the logits never exist at once."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.compression.distillation import losses, split
from workers.compression.distillation.settings import Settings

LOGITS = 2**25
"""How many logits of a model exist at a time."""

WARM = 2**20
"""How many of them a CPU works on at a time in float32: few enough for its cache."""


class Objective:
    """What the student of this teacher is trained for, on windows of `length` tokens."""

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, settings: Settings, length: int) -> None:
        self._teacher, self._student, self._settings = teacher, student, settings
        self._tokens = settings.sequences * length
        self._successors = settings.sequences * (length - 1)

    def backward(self, ids: Tensor) -> Tensor:
        """Adds the gradients of windows [N, T] in the mean over a step's tokens, and gives their part of the loss."""
        with torch.no_grad():
            wanted = split.states(self._teacher, ids).flatten(0, 1)
        entering = split.states(self._student, ids).flatten(0, 1)
        loss, gradient = self._head(entering.detach(), wanted, _labels(ids))
        if self._settings.hidden:
            error = losses.relative_error(entering, wanted) * (self._settings.hidden / self._tokens)
            loss += error.detach()
            torch.autograd.backward([entering, error], [gradient, torch.ones_like(error)])
        elif entering.requires_grad:
            entering.backward(gradient)  # type: ignore[no-untyped-call]
        return loss

    def _head(self, entering: Tensor, wanted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Backward through the output head: the loss and its gradient [n, E] for what enters, also [n, E]."""
        loss, gradients = torch.zeros((), device=entering.device), []
        size = max(1, LOGITS // self._student.config.vocab_size)
        for slices in zip(*(torch.split(each, size) for each in (entering, wanted, labels)), strict=True):
            inputs = slices[0].requires_grad_()
            logits = split.logits(self._student, inputs)
            with torch.no_grad():
                target = split.logits(self._teacher, slices[1])
                cost = self._cost(logits.detach(), target, slices[2])
            loss += cost.loss
            logits.backward(cost.gradient)  # type: ignore[no-untyped-call]
            gradients.append(inputs.grad)
        return loss, torch.cat(gradients)

    def _cost(self, student: Tensor, teacher: Tensor, labels: Tensor) -> losses.Cost:
        loss, gradient = torch.zeros((), device=student.device), torch.empty_like(student)
        size = len(student) if student.is_cuda else max(1, WARM // student.shape[1])
        slices = (torch.split(each, size) for each in (student, teacher, labels, gradient))
        for ours, theirs, following, into in zip(*slices, strict=True):
            part, found = losses.divergence(ours, theirs, self._settings.temperature)
            loss += part / self._tokens
            found /= self._tokens
            if self._settings.cross_entropy:
                weight = self._settings.cross_entropy / self._successors
                part, more = losses.cross_entropy(ours, following)
                loss += part * weight
                found += more.mul_(weight)
            into.copy_(found)
        return losses.Cost(loss, gradient)


def _labels(ids: Tensor) -> Tensor:
    """What follows each token of windows [N, T], as [N · T], and -1 behind the last."""
    return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()
