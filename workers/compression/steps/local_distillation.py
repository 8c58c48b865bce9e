"""Training a few consecutive blocks alone, until what leaves them is what another model has at that place.

    for checkpoint in distil(model, blocks, inputs, targets, settings):
        ...                               # durable where the caller wrote it down: pass the last one as `resumed`

Promise: a distillation that was resumed from a checkpoint ends with the same weights as one that was not interrupted.
Batches, their order and the learning rate follow from the number of the step alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.compression.steps.grafting import trained

_STATE = ("step", "exp_avg", "exp_avg_sq")


class RunnableModel(Protocol):
    """What this module needs of a model; `models.EditedModel` is one."""

    device: torch.device
    dtype: torch.dtype

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """The block's output for its input; gradients pass through."""


@dataclass(frozen=True)
class Distillation:
    """How a group is distilled: over so many `tokens` in all, `batch` sequences a step, by AdamW.

    `rate` is the highest learning rate, and `coefficient_rate` that of what multiplies the donor's weights. Both rise
    over the part `warm_up` of the steps and then fall to 0 as a cosine. `loss` is one of LOSSES. Gradients are clipped
    to the norm `clip`. Training happens in float32, or with `float32` off in the model's own dtype.
    """

    tokens: int
    batch: int = 4
    rate: float = 3e-4
    coefficient_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warm_up: float = 0.05
    clip: float = 1.0
    loss: str = "relative_error"
    float32: bool = True

    def steps(self, length: int) -> int:
        """The number of steps for sequences of this length."""
        return math.ceil(self.tokens / (self.batch * length))


@dataclass(frozen=True)
class Checkpoint:
    """A distillation after `step` steps: what is trained and the optimizer's state, by name, and the last loss."""

    step: int
    loss: float
    tensors: Mapping[str, Tensor]


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared error of each token's state over its squared norm, as a mean over tokens; both [batch, length, H]."""
    lost = (student - teacher).square().sum(-1)
    return (lost / teacher.square().sum(-1)).mean()


def batch_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of distributions over the sequences of the batch, one for each position and channel: FuseGPT's published loss.

    What all sequences share is invisible to it, and it is zero for a batch of one.
    """
    return functional.kl_div(student.log_softmax(0), teacher.softmax(0), reduction="batchmean")


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"relative_error": relative_error, "batch_divergence": batch_divergence}
)


@torch.enable_grad()
def distil(
    model: RunnableModel,
    blocks: Mapping[int, nn.Module],
    inputs: Tensor,
    targets: Tensor,
    settings: Distillation,
    *,
    interval: int = 100,
    seed: int = 0,
    resumed: Checkpoint | None = None,
) -> Iterator[Checkpoint]:
    """Trains the grafted blocks in place; yields a checkpoint every `interval` steps and after the last.

    `blocks` by their index, in order; `inputs` and `targets` [N, T, H] are what enters the first and what should leave
    the last. A checkpoint's tensors are those in training: whoever keeps them for later copies them.
    """
    names = {f"{index}.{name}": each for index, block in blocks.items() for name, each in trained(block)}
    optimizer = _optimizer(names, settings)
    if resumed is not None:
        _restore(names, optimizer, resumed)
    steps = settings.steps(inputs.shape[1])
    loss = torch.zeros(())
    for step in range(resumed.step if resumed else 0, steps):
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * _schedule(step, steps, settings.warm_up)
        chosen = _batch(step, settings.batch, len(inputs), seed)
        student = inputs[chosen].to(model.device, model.dtype)
        for index, block in blocks.items():
            student = model.run(block, index, student)
        loss = LOSSES[settings.loss](student.float(), targets[chosen].to(model.device).float())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(names.values(), settings.clip)
        optimizer.step()
        if (step + 1) % interval == 0 or step + 1 == steps:
            yield Checkpoint(step + 1, loss.item(), _state(names, optimizer))


def _optimizer(names: Mapping[str, nn.Parameter], settings: Distillation) -> torch.optim.AdamW:
    coefficients = [each for name, each in names.items() if ".coefficient" in name]
    others = [each for name, each in names.items() if ".coefficient" not in name]
    groups = [
        {"params": parameters, "highest": rate}
        for parameters, rate in ((coefficients, settings.coefficient_rate), (others, settings.rate))
    ]
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay)


def _schedule(step: int, steps: int, warm_up: float) -> float:
    """The part of the highest learning rate: a rise, then a cosine to 0."""
    rising = warm_up * steps
    if step + 1 < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising))) / 2


def _batch(step: int, batch: int, sequences: int, seed: int) -> Tensor:
    """Which sequences a step takes: those of one random order after another."""
    size = min(batch, sequences)
    epoch, place = divmod(step * size, sequences // size * size)
    order = torch.randperm(sequences, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    return order[place : place + size]


def _state(names: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {f"trained:{name}": each.detach() for name, each in names.items()}
    for field in _STATE:
        found |= {f"{field}:{name}": optimizer.state[each][field] for name, each in names.items()}
    return found


@torch.no_grad()
def _restore(names: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    for name, parameter in names.items():
        parameter.copy_(checkpoint.tensors[f"trained:{name}"])
        state = {field: checkpoint.tensors[f"{field}:{name}"] for field in _STATE}
        # A checkpoint that was read from a file is on the CPU, where AdamW wants the number of the step to stay.
        places = {"step": torch.device("cpu")}
        optimizer.state[parameter] = {
            field: each.to(places.get(field, parameter.device), copy=True) for field, each in state.items()
        }
