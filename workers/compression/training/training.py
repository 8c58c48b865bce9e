"""Distilling a student from its teacher over packed windows of text.

    for checkpoint in distil(teacher, student, windows, settings):
        ...                               # durable where the caller wrote it down: pass the last one as `resumed`

Promise: a training that was resumed from a checkpoint ends with the same weights as one that was not interrupted, bit
for bit on the CPU. What a step does follows from the state before it and the step's number alone.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.compression.spec.errors import CompressionError
from workers.compression.training.objective import Objective
from workers.compression.training.parallel import Alone, Ranks
from workers.compression.training.settings import Settings
from workers.compression.training.stability import Watch
from workers.compression.training.teacher import CachedTeacher, Teacher
from workers.compression.training.teacher_cache import TeacherCache
from workers.compression.training.trained import trainable

RESTARTS = 4
"""How often a training may go back and halve its learning rate before it is given up."""

OVERDUE = 4
"""How many intervals a checkpoint waits at most."""

_TRAINED = "trained"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Diverged(CompressionError):
    """The loss rose or was no number, again and again, however low the learning rate."""

    code = "diverged"


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` of its `steps` steps.

    `tokens` were seen, `losses` is the curve, one number a step. `restarts` counts how often the training diverged, was
    put back to the checkpoint before and went on at half the learning rate. `tensors` are what is trained, in float32,
    and the optimizer's moments, by name: a copy that later steps leave alone. Where each of several processes holds a
    share of them, the leading one alone has the copy.
    """

    step: int
    steps: int
    tokens: int
    losses: tuple[float, ...]
    restarts: int
    tensors: Mapping[str, Tensor]

    @property
    def trained(self) -> dict[str, Tensor]:
        """What is trained, named as in the student. The moments, which may lie on a disk, are not read."""
        fields = {key: key.partition(":") for key in self.tensors}
        return {name: self.tensors[key] for key, (field, _, name) in fields.items() if field == _TRAINED}


Keep = Callable[[Checkpoint], Checkpoint]


@torch.enable_grad()
def distil(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    windows: Tensor,
    settings: Settings,
    *,
    seed: int = 0,
    resumed: Checkpoint | None = None,
    compute_dtype: torch.dtype | None = None,
    cache: Path | None = None,
    ranks: Ranks | None = None,
    keep: Keep = lambda checkpoint: checkpoint,
    told: Callable[[int, float], None] | None = None,
) -> Iterator[Checkpoint]:
    """Trains the student in place; yields a checkpoint every `settings.interval` steps and after the last.

    While the loss is well above its best, checkpoints wait: a training that diverges goes back to before that.
    `windows` [N, T] are token ids, taken in a random order that `seed` decides, then in another, and so on. The student
    is in float32 and computes in `compute_dtype` where that is given; the teacher computes in its own. `cache` is a
    directory for this teacher's logits, see `Settings.cached_logits`. `ranks` divides each step among processes that
    all call this with the same arguments. `keep` may put a checkpoint away and give back one that reads its tensors
    from there, so that they leave the memory. `told` is called behind each step, with the number of steps that are done
    and the loss. Raises Diverged; ValueError where the settings leave nothing to train.
    """
    training = _Training(teacher, student, windows, settings, seed, compute_dtype, cache, ranks or Alone())
    kept = training.checkpoint() if resumed is None else resumed
    training.restore(kept)
    while training.step < training.steps:
        if not training.advance():
            kept = dataclasses.replace(kept, restarts=kept.restarts + 1)
            if kept.restarts > RESTARTS:
                raise Diverged(
                    f"The distillation diverged {kept.restarts} times near step {training.step} of {training.steps}, "
                    f"at last at a learning rate of {settings.rate / 2**RESTARTS:.1g}; a lower one may help."
                )
            training.restore(kept)
            continue
        if told is not None:
            told(training.step, training.loss)
        if training.step == training.steps or _is_due(training, kept, settings.interval):
            kept = keep(training.checkpoint())
            yield kept
    student.zero_grad()
    student.requires_grad_(False)


def _key(field: str, name: str) -> str:
    """Under which a checkpoint has a parameter, or one of its moments."""
    return f"{field}:{name}"


def _is_due(training: "_Training", kept: Checkpoint, interval: int) -> bool:
    overdue = training.step - kept.step >= OVERDUE * interval
    return training.step % interval == 0 and (training.settled or overdue)


class _Training:
    """The student, its optimizer and how far they are."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        windows: Tensor,
        settings: Settings,
        seed: int,
        compute_dtype: torch.dtype | None,
        cache: Path | None,
        ranks: Ranks,
    ) -> None:
        self.step, self.steps = 0, settings.steps(windows.shape[1])
        self._settings, self._windows, self._seed, self._ranks = settings, windows, seed, ranks
        self._device, self._compute_dtype = student.device, compute_dtype
        ranks.divide(teacher, student, settings, compute_dtype)
        self._student = student
        self._parameters = trainable(student, settings.train)
        student.requires_grad_(False)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._objective = Objective(_teacher(teacher, windows, settings, cache), student, settings, windows.shape[1])
        self._held = {name: ranks.held(parameter) for name, parameter in self._parameters.items()}
        self._optimizer = _optimizer(self._held, settings)
        self._losses: list[float] = []
        self._restarts = 0
        self._watch = Watch()

    @property
    def loss(self) -> float:
        """That of the last step."""
        return self._losses[-1]

    def advance(self) -> bool:
        """One step; False, with the weights as they were, where it shows that the training has diverged."""
        # The gradients of what is held are views of the student's: both have to let go of them.
        self._student.zero_grad()
        self._optimizer.zero_grad()
        loss = self._backward(self._chosen())
        gradients = self._gradients()
        self._ranks.add([loss, *gradients])
        norm = self._ranks.norm(gradients)
        if self._watch.diverged(loss.item()) or not math.isfinite(norm.item()):
            return False
        if norm > self._settings.clip:
            nn.utils.clip_grads_with_norm_(self._held.values(), self._settings.clip, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate_at(self.step, self.steps) / 2**self._restarts
        self._optimizer.step()
        self.step += 1
        self._losses.append(loss.item())
        return True

    @property
    def settled(self) -> bool:
        return self._watch.settled

    def checkpoint(self) -> Checkpoint:
        tensors = {}
        for name, parameter in self._parameters.items():
            for field, held in self._state(name).items():
                whole = self._ranks.gathered(held, parameter)
                if whole is not None:
                    tensors[_key(field, name)] = whole
        tokens = self.step * self._settings.sequences * self._windows.shape[1]
        return Checkpoint(self.step, self.steps, tokens, tuple(self._losses), self._restarts, tensors)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        self.step, self._restarts = checkpoint.step, checkpoint.restarts
        self._losses, self._watch = list(checkpoint.losses), Watch(checkpoint.losses)
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            held = self._held[name]
            held.copy_(self._ranks.scattered(checkpoint.tensors, _key(_TRAINED, name), parameter))
            if self.step:
                self._optimizer.state[held] = {"step": torch.tensor(float(self.step), device=held.device)} | {
                    field: self._ranks.scattered(checkpoint.tensors, _key(field, name), parameter) for field in _MOMENTS
                }

    def _state(self, name: str) -> dict[str, Tensor]:
        """What is held of a parameter and of its moments, by what they are called in a checkpoint."""
        held = self._held[name]
        moments = {field: self._optimizer.state[held][field] for field in _MOMENTS} if self.step else {}
        return {_TRAINED: held, **moments}

    def _backward(self, chosen: Tensor) -> Tensor:
        """Leaves the gradients of this process's share of the step, and gives the share's part of the loss."""
        loss = torch.zeros((), device=self._device)
        # One context for the step: the weights are cast once, not anew for each micro-batch.
        with self._autocast():
            for ids in torch.split(self._windows[chosen], self._settings.micro_batch):
                loss += self._objective.backward(ids.to(self._device))
        return loss

    def _chosen(self) -> Tensor:
        """This process's share of the windows of the step: the next ones of one random order after another."""
        size, count = self._settings.sequences, len(self._windows)
        places = range(self.step * size, (self.step + 1) * size)
        orders = {epoch: self._order(epoch) for epoch in {place // count for place in places}}
        chosen = torch.stack([orders[place // count][place % count] for place in places])
        return self._ranks.share(chosen)

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((1_000_003 * self._seed + epoch) % 2**63)
        return torch.randperm(len(self._windows), generator=generator)

    def _gradients(self) -> list[Tensor]:
        """Those of the parameters, which the optimizer finds where it looks."""
        found = []
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._held[name].grad = self._ranks.held(parameter.grad)
            found.append(parameter.grad)
        return found

    def _autocast(self) -> AbstractContextManager[object]:
        if self._compute_dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._compute_dtype)


def _teacher(model: PreTrainedModel, windows: Tensor, settings: Settings, cache: Path | None) -> Teacher:
    """Keeps what the teacher says where it will be asked again and the loss needs nothing else of it."""
    if cache is None or not settings.cached_logits or settings.hidden or settings.tokens <= windows.numel():
        return Teacher(model)
    return CachedTeacher(model, TeacherCache(cache, settings.cached_logits, settings.temperature))


def _optimizer(held: Mapping[str, Tensor], settings: Settings) -> torch.optim.AdamW:
    matrices = [each for each in held.values() if each.ndim > 1]
    vectors = [each for each in held.values() if each.ndim < 2]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=settings.betas, eps=settings.epsilon, fused=True)
