"""The training loop: schedule, optimizer, gradient clipping, checkpoints, and going back after a divergence.

    checkpoint = train(TrainingTask(parameters, groups, batches, ...), settings, observer)

A `TrainingTask` has the parameters, the batches and the loss. `distillation` trains a whole model with it,
`steps.local_distillation` the blocks around a removed one.

Promise: a run that is resumed from a checkpoint ends with the weights of one that was not interrupted, bit for bit on
the CPU. What a step does follows from the state before it and the step's number.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelpress.spec.errors import CompressionError
from workers.compression.training.batches import BatchOrder
from workers.compression.training.checkpoint import ADAM_STATE, TrainingCheckpoint, parameter_key, state_key
from workers.compression.training.parallel import ParallelStrategy, SingleProcess
from workers.compression.training.schedule import WarmupCosine
from workers.compression.training.settings import TrainingSettings
from workers.compression.training.stability import DivergenceMonitor

RESTARTS = 4
"""How often a run may go back to a checkpoint and halve its learning rate before it fails."""

OVERDUE = 4
"""The most intervals that a checkpoint which is due waits for the loss to settle."""


class Diverged(CompressionError):
    """The loss rose far above its lowest value or was not finite, again and again, at ever lower learning rates."""

    code = "diverged"


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters, by name, that share a highest learning rate and a weight decay."""

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class TrainingTask:
    """One use of the loop: the parameters to train, the batches, and the loss.

    Attributes:
        parameters: the trained parameters by name.
        groups: every parameter in exactly one group.
        batches: which sequences each step takes.
        length: tokens per sequence.
        backward: takes the indices [n] of some sequences of a step, adds the gradients of their part of the step's
            loss to the parameters, and returns that part, a scalar without a graph.
        schedule: the learning rate over the run.
        fused: use AdamW's fused kernel, which is faster; it rounds a parameter in bfloat16 differently.
    """

    parameters: Mapping[str, nn.Parameter]
    groups: tuple[ParameterGroup, ...]
    batches: BatchOrder
    length: int
    backward: Callable[[Tensor], Tensor]
    schedule: WarmupCosine
    fused: bool = True


class Observer:
    """The caller's view of a training run. This base class keeps no checkpoints and starts every run anew."""

    def latest(self) -> TrainingCheckpoint | None:
        """Return the checkpoint to resume from; None to start at the first step."""
        return None

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        """Keep a checkpoint, and return an equal one, whose tensors may be loaded from disk on access."""
        return checkpoint

    def on_step(self, step: int, loss: float, restarts: int) -> None:
        """Receive progress: `step` steps are done, the last with this loss; the run has diverged `restarts` times."""


@torch.enable_grad()
def train(
    task: TrainingTask,
    settings: TrainingSettings,
    observer: Observer | None = None,
    parallel: ParallelStrategy | None = None,
) -> TrainingCheckpoint:
    """Train the task's parameters in place, and return the checkpoint after the last step.

    The observer gets a checkpoint every `settings.interval` steps and after the last. A checkpoint that is due waits
    while the loss is well above its lowest, so that a run which diverges goes back to a state before that. With
    `parallel`, each of several processes calls this and computes its share of every step.

    Raises:
        Diverged: after more than RESTARTS divergences.
        PeerLost: when another of the processes is gone.
    """
    observer, run = observer or Observer(), _Run(task, settings, parallel or SingleProcess())
    latest = observer.latest() or run.checkpoint()
    run.restore(latest)
    while run.step < run.steps:
        if run.advance():
            observer.on_step(run.step, run.loss, run.restarts)
            if run.is_due(since=latest.step):
                latest = observer.save(run.checkpoint())
            continue
        latest = dataclasses.replace(latest, restarts=latest.restarts + 1)
        if latest.restarts > RESTARTS:
            raise Diverged(
                f"The training diverged {latest.restarts} times near step {run.step} of {run.steps}, the last time at "
                f"a learning rate of {settings.learning_rate / 2**RESTARTS:.1g}; send a lower learning_rate."
            )
        run.restore(latest)
    return latest


class _Run:
    """The state of a training run: parameters, optimizer, step and losses."""

    def __init__(self, task: TrainingTask, settings: TrainingSettings, parallel: ParallelStrategy) -> None:
        self.step, self.steps = 0, settings.steps(task.length)
        self.restarts = 0
        self._task, self._settings, self._parallel = task, settings, parallel
        self._local = {name: parallel.local(parameter) for name, parameter in task.parameters.items()}
        self._optimizer = self._adamw()
        self._losses: list[float] = []
        self._monitor = DivergenceMonitor(ratio=settings.divergence_ratio)

    @property
    def loss(self) -> float:
        """The loss of the last step."""
        return self._losses[-1]

    def advance(self) -> bool:
        """Take one step. Return False, with the weights unchanged, if the run has diverged."""
        # The gradients of local shards are views of the parameters' own: both have to be released.
        for parameter in self._task.parameters.values():
            parameter.grad = None
        self._optimizer.zero_grad()
        loss = self._task.backward(self._parallel.share(self._task.batches.batch(self.step)))
        gradients = self._gradients()
        self._parallel.add([loss, *gradients])
        total = self._parallel.norm(gradients)
        # Both in one copy: it is the only time in a step that the host waits for the device.
        value, norm = torch.stack((loss.double(), total.double())).tolist()
        if self._monitor.diverged(value) or not math.isfinite(norm):
            return False
        if norm > self._settings.max_gradient_norm:
            nn.utils.clip_grads_with_norm_(self._local.values(), self._settings.max_gradient_norm, total)
        factor = self._task.schedule.factor(self.step, self.steps) / 2**self.restarts
        for group in self._optimizer.param_groups:
            group["lr"] = group["highest_lr"] * factor
        self._optimizer.step()
        self.step += 1
        self._losses.append(value)
        return True

    def is_due(self, since: int) -> bool:
        """Return whether a checkpoint is to be kept now; the latest one was after step `since`."""
        if self.step == self.steps:
            return True
        interval = self._settings.interval
        return self.step % interval == 0 and (self._monitor.settled or self.step - since >= OVERDUE * interval)

    def checkpoint(self) -> TrainingCheckpoint:
        """Return a copy of the present state."""
        tensors = {}
        for name, parameter in self._task.parameters.items():
            local = self._local[name]
            state = {field: self._optimizer.state[local][field] for field in ADAM_STATE} if self.step else {}
            keyed = {parameter_key(name): local} | {state_key(field, name): each for field, each in state.items()}
            for key, share in keyed.items():
                whole = self._parallel.gathered(share, parameter)
                if whole is not None:
                    tensors[key] = whole
        tokens = self.step * self._settings.batch_size * self._task.length
        return TrainingCheckpoint(self.step, self.steps, tokens, tuple(self._losses), self.restarts, tensors)

    @torch.no_grad()
    def restore(self, checkpoint: TrainingCheckpoint) -> None:
        """Put parameters, optimizer and losses into the state of a checkpoint."""
        self.step, self.restarts = checkpoint.step, checkpoint.restarts
        self._losses = list(checkpoint.losses)
        self._monitor = DivergenceMonitor(checkpoint.losses, ratio=self._settings.divergence_ratio)
        self._optimizer.state.clear()
        for name, parameter in self._task.parameters.items():
            local = self._local[name]
            local.copy_(self._parallel.scattered(checkpoint.tensors, parameter_key(name), parameter))
            if self.step:
                # Only the fused kernel reads the step's number where the parameter is.
                place = local.device if self._task.fused else torch.device("cpu")
                self._optimizer.state[local] = {"step": torch.tensor(float(self.step), device=place)} | {
                    field: self._parallel.scattered(checkpoint.tensors, state_key(field, name), parameter)
                    for field in ADAM_STATE
                }

    def _adamw(self) -> torch.optim.AdamW:
        groups = [
            {
                "params": [self._local[name] for name in group.names],
                "highest_lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in self._task.groups
            if group.names
        ]
        fused = True if self._task.fused else None  # None: torch's default, which is not fused
        return torch.optim.AdamW(groups, betas=self._settings.betas, eps=self._settings.epsilon, fused=fused)

    def _gradients(self) -> list[Tensor]:
        """Return every parameter's gradient (zeros where None), and set `.grad` of what the optimizer holds of it."""
        gradients = []
        for name, parameter in self._task.parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._local[name].grad = self._parallel.local(parameter.grad)
            gradients.append(parameter.grad)
        return gradients
