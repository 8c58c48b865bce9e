"""Distil a student from its teacher over packed windows of text.

    checkpoint = distil(teacher, student, windows, DistillationSettings(tokens=262_144), observer=observer)

Promise: a resumed distillation ends with the weights of one that was not interrupted, as `loop` promises. A step that
does not fit into a card's memory is taken again with half as many sequences at a time.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.compression.training.batches import ContinuousBatches
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.loop import Observer, ParameterGroup, TrainingTask, train
from workers.compression.training.objective import DistillationObjective
from workers.compression.training.parallel import ParallelStrategy, SingleProcess
from workers.compression.training.rounded import UNITS
from workers.compression.training.schedule import WarmupCosine
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.teacher import CachedTeacher, Teacher
from workers.compression.training.teacher_cache import TeacherCache
from workers.compression.training.trained import trainable_parameters

log = logging.getLogger(__name__)

CPU_SEQUENCES = 2
"""Sequences per forward and backward pass on a CPU: more are no faster, and need more memory."""

UNITS_RATE = 20
"""Learning rate of relative units, which are near 1, as a multiple of that of weights, which are near 0.05."""

CARD_TOKENS = 16_384
"""Tokens per forward and backward pass on a card, whose kernels have to outlast their launches."""


def distil(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    windows: Tensor,
    settings: DistillationSettings,
    *,
    compute_dtype: torch.dtype | None = None,
    teacher_cache: Path | None = None,
    parallel: ParallelStrategy | None = None,
    observer: Observer | None = None,
) -> TrainingCheckpoint:
    """Train the student in place to predict what the teacher predicts, and return the checkpoint after the last step.

    Args:
        windows: token ids [N, T], packed; every epoch takes them in another order.
        student: in float32.
        compute_dtype: dtype of the student's matrix products (autocast); None: float32. The teacher computes in its
            own dtype.
        teacher_cache: directory for this teacher's largest logits, see `DistillationSettings.teacher_top_k`.
        parallel: how several processes share the work; each calls this with the same arguments.
        observer: where checkpoints are kept and progress is reported.

    Raises:
        Diverged: when the loss explodes even at lower learning rates.
        OutOfMemoryError: when not even a single sequence fits into the device's memory.
        PeerLost: when another of the processes is gone.
        ValueError: when the student has no parameters of the kind `settings.trainable`, or the processes cannot share
            the work of these settings.
    """
    parallel, device = parallel or SingleProcess(), student.device
    parallel.divide(teacher, student, settings, compute_dtype)
    parameters = trainable_parameters(student, settings.trainable)
    student.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    answering = _teacher(teacher, windows, settings, teacher_cache)
    objective = DistillationObjective(answering, student, settings, windows.shape[1])
    task = TrainingTask(
        parameters,
        groups=_groups(parameters, settings),
        batches=ContinuousBatches(len(windows), settings.batch_size, settings.seed),
        length=windows.shape[1],
        backward=_MicroBatches(
            objective,
            windows,
            settings.micro_batch_size or sequences_at_a_time(device, windows.shape[1]),
            compute_dtype=compute_dtype,
            again=parallel.computes_alone,
        ),
        schedule=WarmupCosine(settings.warmup_ratio),
    )
    last = train(task, settings, observer, parallel)
    student.zero_grad()
    student.requires_grad_(False)
    return last


def _groups(parameters: Mapping[str, nn.Parameter], settings: DistillationSettings) -> tuple[ParameterGroup, ...]:
    """Return the parameters in groups. Weight decay spares norms, biases and units, which are near 1."""
    units = tuple(name for name in parameters if name.endswith(UNITS))
    others = {name: parameter for name, parameter in parameters.items() if name not in units}
    matrices = tuple(name for name, parameter in others.items() if parameter.ndim > 1)
    vectors = tuple(name for name, parameter in others.items() if parameter.ndim < 2)
    return (
        ParameterGroup(matrices, settings.learning_rate, settings.weight_decay),
        ParameterGroup(vectors, settings.learning_rate),
        ParameterGroup(units, settings.learning_rate * UNITS_RATE),
    )


class _MicroBatches:
    """Forward and backward passes over a batch, a few sequences at a time."""

    def __init__(
        self,
        objective: DistillationObjective,
        windows: Tensor,
        together: int,
        *,
        compute_dtype: torch.dtype | None,
        again: bool,
    ) -> None:
        """Take the batches out of `windows` [N, T], `together` sequences at a time.

        `again`: take a batch again with half as many at a time if it does not fit into the device's memory. Processes
        that need each other in every pass cannot.
        """
        self.objective, self.windows, self.together = objective, windows, together
        self.compute_dtype, self.again = compute_dtype, again

    def __call__(self, chosen: Tensor) -> Tensor:
        """Add the gradients of the sequences with the indices `chosen` [n], and return the sum of their losses."""
        while True:
            try:
                return self._attempt(chosen)
            except torch.OutOfMemoryError:
                if self.together == 1 or not self.again:
                    raise
            # Out of the handler, which holds what did not fit.
            self._halve()

    def _attempt(self, chosen: Tensor) -> Tensor:
        device = self.objective.student.device
        loss = torch.zeros((), device=device)
        # One autocast context per step: weights are cast once, not anew for each micro-batch.
        with _autocast(device, self.compute_dtype):
            # The whole batch at once, while the device has nothing to do: the host waits for each copy.
            for ids in torch.split(self.windows[chosen].to(device), self.together):
                loss += self.objective.backward(ids)
        return loss

    def _halve(self) -> None:
        """Drop the gradients of a step that did not fit, and take half as many sequences at a time from now on."""
        self.objective.student.zero_grad()
        torch.cuda.empty_cache()
        half = self.together // 2
        log.warning("out of memory with %d sequences at a time; the training goes on with %d", self.together, half)
        self.together = half


def sequences_at_a_time(device: torch.device, length: int) -> int:
    """Return how many sequences of `length` tokens a device computes at a time unless it is told."""
    return CPU_SEQUENCES if device.type == "cpu" else max(1, CARD_TOKENS // length)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _teacher(model: PreTrainedModel, windows: Tensor, settings: DistillationSettings, cache: Path | None) -> Teacher:
    """Return a teacher that caches its logits if text is repeated and the loss needs nothing else of it."""
    repeated = settings.tokens > windows.numel()
    if cache is None or not settings.teacher_top_k or settings.hidden_weight or not repeated:
        return Teacher(model)
    return CachedTeacher(model, TeacherCache(cache, settings.teacher_top_k, settings.temperature))
