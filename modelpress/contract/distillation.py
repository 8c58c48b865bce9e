"""The part of a recipe that asks for training after the compression."""

import math
from typing import Self

from pydantic import Field, model_validator

from modelpress.contract.options import Mixed
from modelpress.spec.training import Trainable


class Distillation(Mixed):
    """Training of the compressed model, the student, to predict what the original, the teacher, predicts.

    The loss, in nats per token, is the KL divergence of the student's next-token distributions from the teacher's, plus
    the other losses that have a weight here. Teacher, student (float32) and six times the trained parameters (float32)
    must fit into the worker's memory together; otherwise the job fails with `out_of_memory`. With several GPUs, each
    needs that much. If the training is `sharded`, each GPU needs only its share of the blocks, but the whole embedding
    and head, and memory for both models while they are opened; the first process then also needs host memory for three
    times the trained parameters.

    Of a rounded model, what its file stores as floating-point numbers is trained: the scales of rounded matrices in the
    blocks, norms, and what is not rounded.
    """

    tokens: int = Field(
        262_144,
        ge=16,
        le=1_000_000_000,
        description="tokens to train on in all; shorter text is repeated. Where weights are rounded, a quarter of them "
        "trains the rounded model of each format, or all of them if the model loses no structure",
    )
    length: int = Field(512, ge=16, le=32768, description="tokens per sequence")
    batch_size: int = Field(4, ge=1, le=4096, description="sequences per optimizer step")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="sequences per forward and backward pass; gradients accumulate over the batch. Fewer need less "
        "memory. Unset: 2 on a CPU; on a GPU, which needs more to be busy, as many as have 16384 tokens",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, which needs less memory and more time"
    )
    learning_rate: float = Field(
        1e-4,
        gt=0,
        le=0.1,
        description="AdamW's learning rate after the warm-up, from which it falls to 0 along a cosine",
    )
    warmup_ratio: float = Field(
        0.05, ge=0, le=1, description="share of the optimizer steps in which the learning rate rises"
    )
    temperature: float = Field(
        1.0,
        ge=0.1,
        le=20,
        description="divisor of the logits of teacher and student before they are compared; the KL divergence is "
        "multiplied by its square",
    )
    cross_entropy_weight: float = Field(
        0.0, ge=0, le=100, description="weight of the student's cross entropy on the text itself"
    )
    hidden_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="weight of the relative squared error between the last hidden states of student and teacher",
    )
    trainable: Trainable = Field(
        "all", description="which parameters are trained: all, those of factored matrices, or norms and biases"
    )
    teacher_top_k: int = Field(
        0,
        ge=0,
        le=4096,
        description="cache this many of the teacher's largest logits per token on disk (8 bytes each) and reuse them "
        "when text is repeated; the probabilities of all other tokens are compared as one sum. 0 caches nothing",
    )
    sharded: bool = Field(
        False,
        description="shard the blocks of both models, their gradients and their optimizer state over the GPUs (FSDP), "
        "which needs less memory on each and more communication. The largest number of GPUs that divides `batch_size` "
        "is used; with one GPU this has no effect",
    )
    phases: int = Field(
        1,
        ge=1,
        le=1024,
        description="compress the matrices in this many groups, from the embedding and the first blocks to the last, "
        "and train the whole model after each group on an equal share of the tokens; more than 1 only for methods that "
        "only factor matrices",
    )

    @model_validator(mode="after")
    def check_teacher_cache(self) -> Self:
        """Raise ValueError if cached logits are combined with an option that they cannot serve."""
        if self.teacher_top_k and self.hidden_weight:
            raise ValueError("hidden states are not cached; send teacher_top_k or hidden_weight, not both")
        if self.teacher_top_k and self.sharded:
            raise ValueError(
                "a sharded teacher is computed by all GPUs at once, so its logits cannot be cached; "
                "send teacher_top_k or sharded, not both"
            )
        return self

    @model_validator(mode="after")
    def check_tokens(self) -> Self:
        """Raise ValueError unless the tokens suffice for a batch of each phase and a sequence of each dataset."""
        batch = self.batch_size * self.length
        if self.tokens < batch:
            raise ValueError(
                f"tokens ({self.tokens}) is less than one batch, batch_size times length ({batch}); "
                "raise tokens, or lower batch_size or length"
            )
        for dataset, windows in self.divided(self.windows).items():
            if windows == 0:
                raise ValueError(
                    f"tokens ({self.tokens}) leaves no sequence of {self.length} for {dataset}; raise tokens"
                )
        if self.tokens < batch * self.phases:
            raise ValueError(
                f"tokens ({self.tokens}) leaves less than one batch, batch_size times length ({batch}), to each of "
                f"{self.phases} phases; raise tokens, or lower phases, batch_size or length"
            )
        return self

    @property
    def windows(self) -> int:
        """Return the number of sequences that hold the tokens, rounded up."""
        return math.ceil(self.tokens / self.length)
