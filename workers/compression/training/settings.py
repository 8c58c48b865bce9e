"""How a student is distilled: how long, how fast, towards what, and which of its tensors move."""

import math
from dataclasses import dataclass
from typing import Literal

Trainable = Literal["all", "factors", "norms"]
"""`factors` are the tensors of compact layers, `norms` the weights of norms and every bias."""


@dataclass(frozen=True)
class Settings:
    """Training over so many `tokens` in all, `sequences` windows a step, of which `micro_batch` pass at a time.

    The loss is `temperature`² times the divergence KL(teacher ‖ student) of the distributions at that temperature, in
    nats per token, plus `cross_entropy` times that of the text itself, plus `hidden` times the squared error of what
    enters the output head over the teacher's squared norm.

    AdamW's learning rate rises to `rate` over the part `warm_up` of the steps and falls to 0 as a cosine;
    `weight_decay` spares norms and biases. Gradients are clipped to the norm `clip`. A checkpoint follows every
    `interval` steps. With `checkpointing` the blocks' activations are computed a second time instead of being kept.

    `cached_logits` is how many of the teacher's largest logits of each token are kept in a file once the windows are
    passed over more than once; the others are then compared as one bucket. 0 keeps none, and so does `hidden`, which
    asks for more than logits.
    """

    tokens: int
    sequences: int = 4
    micro_batch: int = 2
    rate: float = 1e-4
    warm_up: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    temperature: float = 1.0
    cross_entropy: float = 0.0
    hidden: float = 0.0
    train: Trainable = "all"
    checkpointing: bool = False
    interval: int = 25
    cached_logits: int = 0

    def steps(self, length: int) -> int:
        """The number of steps for windows of this length."""
        return math.ceil(self.tokens / (self.sequences * length))

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0: a rise, then a cosine to 0."""
        rising = self.warm_up * steps
        if step + 1 <= rising:
            return self.rate * (step + 1) / rising
        return self.rate * (1 + math.cos(math.pi * max(0.0, step - rising) / max(1.0, steps - rising))) / 2
