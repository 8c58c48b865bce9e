"""The loss of a batch of windows and its gradients, computed slice by slice so that the logits never exist at once."""

from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.compression.training import losses, split
from workers.compression.training.losses import Loss, TopLogits
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.teacher import LiveTargets, Targets, Teacher

CPU_LOGITS = 2**19
"""The most logits that a CPU works on at a time, in float32: few enough for its cache."""


class DistillationObjective:
    """The loss of a student and its teacher on windows of `length` tokens, as `DistillationSettings` describes it."""

    def __init__(self, teacher: Teacher, student: PreTrainedModel, settings: DistillationSettings, length: int) -> None:
        self._teacher, self.student, self._settings = teacher, student, settings
        self._tokens = settings.batch_size * length
        self._successors = settings.batch_size * (length - 1)

    def backward(self, ids: Tensor) -> Tensor:
        """Add the gradients of windows [N, T], and return their part of the loss: a mean over the tokens of a step."""
        targets = self._teacher.targets(ids)
        with split.recomputed(self.student) if self._settings.gradient_checkpointing else nullcontext():
            entering = split.states(self.student, ids).flatten(0, 1)
        value, gradient = self._head(entering.detach(), targets, _labels(ids))
        roots, gradients = [entering], [gradient]
        if self._settings.hidden_weight and isinstance(targets, LiveTargets):
            weight = self._settings.hidden_weight / self._tokens
            error = losses.relative_error(entering, targets.states).sum() * weight
            value += error.detach()
            roots, gradients = [*roots, error], [*gradients, torch.ones_like(error)]
        if entering.requires_grad:
            torch.autograd.backward(roots, gradients)
        return value

    def _head(self, entering: Tensor, targets: Targets, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Go forward and backward through the output head.

        Returns:
            The loss, and its gradient [n, E] with respect to the states `entering` [n, E].
        """
        value, gradients = torch.zeros((), device=entering.device), []
        most = split.logits_at_a_time(entering.device)
        for rows in split.slices(len(entering), self.student.config.vocab_size, most):
            inputs = entering[rows].requires_grad_()
            logits = split.logits(self.student, inputs)
            loss = self._loss(logits.detach(), targets[rows], labels[rows])
            value += loss.value
            logits.backward(loss.gradient)
            gradients.append(cast("Tensor", inputs.grad))
        return value, torch.cat(gradients)

    @torch.no_grad()
    def _loss(self, student: Tensor, teacher: Tensor | TopLogits, labels: Tensor) -> Loss:
        """Return the loss of some tokens, and its gradient in the dtype of the student's logits [n, V]."""
        value, gradient = torch.zeros((), device=student.device), torch.empty_like(student)
        numbers = CPU_LOGITS if student.device.type == "cpu" else student.numel()
        for rows in split.slices(len(student), student.shape[1], numbers):
            loss = self._divergence(student[rows], teacher[rows])
            total = loss.gradient.mul_(1 / self._tokens)
            value += loss.value / self._tokens
            if self._settings.cross_entropy_weight:
                weight = self._settings.cross_entropy_weight / self._successors
                loss = losses.cross_entropy(student[rows], labels[rows])
                total += loss.gradient.mul_(weight)
                value += loss.value * weight
            gradient[rows] = total
        return Loss(value, gradient)

    def _divergence(self, student: Tensor, teacher: Tensor | TopLogits) -> Loss:
        if isinstance(teacher, TopLogits):
            return losses.top_divergence(student, teacher, self._settings.temperature)
        return losses.divergence(student, teacher, self._settings.temperature)


def _labels(ids: Tensor) -> Tensor:
    """Return the successor of each token of windows [N, T], flat [N · T]; -1 for the last token of a window."""
    return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()
