"""Settings of a training run, and of the distillation of a whole model."""

import math
from dataclasses import dataclass

from modelpress.spec.training import Trainable


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that every use of the training loop has.

    Attributes:
        tokens: training budget; text is repeated once it is used up.
        batch_size: sequences per optimizer step.
        learning_rate: AdamW's highest rate, reached at the end of the warm-up.
        warmup_ratio: share of the steps, 0 to 1, in which the rate rises linearly; it then falls to 0 as a cosine.
        betas: AdamW's decay rates of the first and the second moment of the gradient.
        epsilon: AdamW's term in the denominator.
        weight_decay: AdamW's decoupled weight decay.
        max_gradient_norm: L2 norm to which the gradients of a step are clipped.
        divergence_ratio: a run has diverged once its smoothed loss is this many times its lowest; with infinity only
            a loss or gradient that is not finite counts.
        interval: steps between two checkpoints.
        seed: decides the order of the sequences.
    """

    tokens: int
    batch_size: int = 4
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    divergence_ratio: float = 3.0
    interval: int = 25
    seed: int = 0

    def steps(self, length: int) -> int:
        """Return the number of optimizer steps for sequences of `length` tokens, rounded up."""
        return math.ceil(self.tokens / (self.batch_size * length))


@dataclass(frozen=True)
class DistillationSettings(TrainingSettings):
    """Settings for training a student to reproduce its teacher's predictions.

    The loss, in nats per token, is `temperature`² · KL(teacher ‖ student) of the softmax distributions at that
    temperature (Hinton et al., arXiv 1503.02531), plus `cross_entropy_weight` times the cross entropy of the text,
    plus `hidden_weight` times the mean relative squared error of the states that enter the output head.

    Attributes:
        micro_batch_size: sequences per forward and backward pass; gradients add up over the batch. None: as many as
            suit the device.
        gradient_checkpointing: recompute the activations of each block in the backward pass instead of storing them.
        trainable: which parameters are trained.
        teacher_top_k: number of the teacher's largest logits of each token to cache, once text is repeated; the
            remaining probability is compared as one bucket. 0 caches nothing, nor does a `hidden_weight` above 0.
    """

    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    temperature: float = 1.0
    cross_entropy_weight: float = 0.0
    hidden_weight: float = 0.0
    trainable: Trainable = "all"
    teacher_top_k: int = 0
