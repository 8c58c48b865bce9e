"""Tiny random models that lose blocks, and how far what is left of them is from the original."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.models import initialised
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.influence import BlockScores
from workers.compression.steps.local_distillation import Checkpoint, Distillation
from workers.compression.steps.work import CheckpointStore

BLOCKS = 6
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}
IDS = torch.randint(80, (12, 24), generator=torch.Generator().manual_seed(1))
OTHERS = torch.randint(80, (6, 24), generator=torch.Generator().manual_seed(2))
SHORT = Distillation(tokens=20 * 4 * 24, batch=4, rate=1e-3, coefficient_rate=1e-2)


def write(model_type: str, directory: Path) -> Path:
    model = initialised(model_type, **SIZES)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1)
        elif name.endswith(".bias"):
            nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(directory)
    return directory


def chosen(*blocks: int) -> Iterator[tuple[int, BlockScores]]:
    return ((block, BlockScores("by hand", {block: 0.5})) for block in blocks)


def shortened(original: StreamedModel, *removed: int) -> EditedModel:
    return EditedModel(original, [CompressedPart("removed", removed=removed)])


@torch.no_grad()
def divergence(model: PreTrainedModel, directory: Path, ids: Tensor = OTHERS) -> float:
    """KL of the model from the original, in nats per token, by default on text that no fit has seen."""
    expected = AutoModelForCausalLM.from_pretrained(directory).eval()(ids).logits.log_softmax(-1)
    return float((expected.exp() * (expected - model.eval()(ids).logits.log_softmax(-1))).sum(-1).mean())


class Kept(CheckpointStore):
    """Checkpoints as copies in memory, and an end by force after some of them."""

    def __init__(self, end_after: int | None = None) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}
        self.count = 0
        self.end_after = end_after

    def latest(self, part: str) -> Checkpoint | None:
        return self.checkpoints.get(part)

    def keep(self, part: str, checkpoint: Checkpoint) -> None:
        tensors: Mapping[str, Tensor] = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        self.checkpoints[part] = dataclasses.replace(checkpoint, tensors=tensors)
        self.count += 1
        if self.count == self.end_after:
            raise KeyboardInterrupt
