"""Train a few consecutive blocks alone to reproduce another model's hidden states.

    distil_blocks(model, blocks, inputs, targets, LocalDistillationSettings(tokens=32_000))

Promise: a resumed run ends with the weights of one that was not interrupted, as `training.loop` promises.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional

from workers.compression.models.protocols import RunnableModel
from workers.compression.steps.grafting import is_coefficient, trained_parameters
from workers.compression.training import losses
from workers.compression.training.batches import DropLastBatches
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.loop import Observer, ParameterGroup, TrainingTask, train
from workers.compression.training.schedule import WarmupCosine
from workers.compression.training.settings import TrainingSettings


@dataclass(frozen=True)
class LocalDistillationSettings(TrainingSettings):
    """Settings for training a group of grafted blocks.

    Attributes:
        coefficient_learning_rate: peak learning rate of the factors that multiply the donor's weights.
        loss: a key of LOSSES.
        float32: keep the trained parameters in float32; otherwise in the model's own dtype.
    """

    learning_rate: float = 3e-4
    divergence_ratio: float = math.inf
    coefficient_learning_rate: float = 1e-3
    loss: str = "relative_error"
    float32: bool = True


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return |student − teacher|² / |teacher|² per token, averaged over tokens, for states [N, T, H] each; a scalar."""
    return losses.relative_error(student, teacher).mean()


def batch_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return FuseGPT's published loss (arXiv 2411.14507) of states [N, T, H] each, divided by N.

    It is the sum of KL(teacher ‖ student), in nats, of one distribution over the N sequences of the batch per position
    and channel. A shift that all sequences share does not change it, and it is 0 for a batch of one.
    """
    return functional.kl_div(student.log_softmax(0), teacher.softmax(0), reduction="batchmean")


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"relative_error": relative_error, "batch_divergence": batch_divergence}
)
"""Losses by name: each takes the states of student and teacher [N, T, H] in float32 and returns a scalar."""


def distil_blocks(
    model: RunnableModel,
    blocks: Mapping[int, nn.Module],
    inputs: Tensor,
    targets: Tensor,
    settings: LocalDistillationSettings,
    observer: Observer | None = None,
) -> TrainingCheckpoint:
    """Train grafted blocks in place until they turn `inputs` into `targets`; return the checkpoint after the last step.

    Args:
        blocks: the blocks by their index, in order.
        inputs: hidden states [N, T, H] that enter the first block.
        targets: hidden states [N, T, H] that the last block is trained to output.
        observer: keeps checkpoints and reports progress.

    Raises:
        Diverged: if a loss or a gradient is not finite even at lower learning rates.
    """
    loss_of = LOSSES[settings.loss]
    parameters = {
        f"{index}.{name}": each for index, block in blocks.items() for name, each in trained_parameters(block)
    }

    def backward(chosen: Tensor) -> Tensor:
        hidden = inputs[chosen].to(model.device, model.dtype)
        for index, block in blocks.items():
            hidden = model.run(block, index, hidden)
        loss = loss_of(hidden.float(), targets[chosen].to(model.device).float())
        loss.backward()
        return loss.detach()

    coefficients = tuple(name for name in parameters if is_coefficient(name))
    others = tuple(name for name in parameters if not is_coefficient(name))
    task = TrainingTask(
        parameters,
        groups=(
            ParameterGroup(coefficients, settings.coefficient_learning_rate, settings.weight_decay),
            ParameterGroup(others, settings.learning_rate, settings.weight_decay),
        ),
        batches=DropLastBatches(len(inputs), settings.batch_size, settings.seed),
        length=inputs.shape[1],
        backward=backward,
        schedule=WarmupCosine(settings.warmup_ratio, holds_peak=False),
        fused=False,
    )
    return train(task, settings, observer)
