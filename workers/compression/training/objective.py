"""The loss of a batch of windows and its gradients, made slice by slice so that the logits never exist at once."""

from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.compression.training import losses, split
from workers.compression.training.losses import Cost, TopLogits
from workers.compression.training.settings import Settings
from workers.compression.training.teacher import LiveTargets, Targets, Teacher

WARM = 2**19
"""How many of them a CPU works on at a time in float32: few enough for its cache."""


class Objective:
    """What the student of this teacher is trained for, on windows of `length` tokens."""

    def __init__(self, teacher: Teacher, student: PreTrainedModel, settings: Settings, length: int) -> None:
        self._teacher, self._student, self._settings = teacher, student, settings
        self._tokens = settings.sequences * length
        self._successors = settings.sequences * (length - 1)

    def backward(self, ids: Tensor) -> Tensor:
        """Adds the gradients of windows [N, T] in the mean over a step's tokens, and gives their part of the loss."""
        targets = self._teacher.targets(ids)
        with split.recomputed(self._student) if self._settings.checkpointing else nullcontext():
            entering = split.states(self._student, ids).flatten(0, 1)
        loss, gradient = self._head(entering.detach(), targets, _labels(ids))
        roots, gradients = [entering], [gradient]
        if self._settings.hidden and isinstance(targets, LiveTargets):
            error = losses.relative_error(entering, targets.states) * (self._settings.hidden / self._tokens)
            loss += error.detach()
            roots, gradients = [*roots, error], [*gradients, torch.ones_like(error)]
        if entering.requires_grad:
            torch.autograd.backward(roots, gradients)
        return loss

    def _head(self, entering: Tensor, targets: Targets, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Backward through the output head: the loss and its gradient [n, E] for what enters, also [n, E]."""
        loss, gradients = torch.zeros((), device=entering.device), []
        for rows in split.slices(len(entering), self._student.config.vocab_size):
            inputs = entering[rows].requires_grad_()
            logits = split.logits(self._student, inputs)
            cost = self._cost(logits.detach(), targets[rows], labels[rows])
            loss += cost.loss
            logits.backward(cost.gradient)  # type: ignore[no-untyped-call]
            gradients.append(cast("Tensor", inputs.grad))
        return loss, torch.cat(gradients)

    @torch.no_grad()
    def _cost(self, student: Tensor, teacher: Tensor | TopLogits, labels: Tensor) -> Cost:
        """The loss of some of the tokens and its gradient in the dtype of their logits [n, V]."""
        loss, gradient = torch.zeros((), device=student.device), torch.empty_like(student)
        numbers = WARM if student.device.type == "cpu" else student.numel()
        for rows in split.slices(len(student), student.shape[1], numbers):
            cost = self._divergence(student[rows], teacher[rows])
            found = cost.gradient.mul_(1 / self._tokens)
            loss += cost.loss / self._tokens
            if self._settings.cross_entropy:
                weight = self._settings.cross_entropy / self._successors
                cost = losses.cross_entropy(student[rows], labels[rows])
                found += cost.gradient.mul_(weight)
                loss += cost.loss * weight
            gradient[rows] = found
        return Cost(loss, gradient)

    def _divergence(self, student: Tensor, teacher: Tensor | TopLogits) -> Cost:
        if isinstance(teacher, TopLogits):
            return losses.top_divergence(student, teacher, self._settings.temperature)
        return losses.divergence(student, teacher, self._settings.temperature)


def _labels(ids: Tensor) -> Tensor:
    """What follows each token of windows [N, T], as [N · T], and -1 behind the last."""
    return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()
