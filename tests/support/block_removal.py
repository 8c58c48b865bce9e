"""Tiny random models that lose blocks, and how far what is left of them is from the original."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.models import initialised
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.influence import BlockScores
from workers.compression.steps.local_distillation import LocalDistillationSettings
from workers.compression.steps.work import CheckpointStore
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.loop import Observer

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
SHORT = LocalDistillationSettings(tokens=20 * 4 * 24, batch_size=4, learning_rate=1e-3, coefficient_learning_rate=1e-2)


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
    """Checkpoints in memory, and an end by force after some of them."""

    def __init__(self, end_after: int | None = None) -> None:
        self.checkpoints: dict[str, TrainingCheckpoint] = {}
        self.count = 0
        self.end_after = end_after

    def observer(self, part: str) -> Observer:
        return KeptPart(self, part)


class KeptPart(Observer):
    """Keeps the checkpoints within one part."""

    def __init__(self, kept: Kept, part: str) -> None:
        self.kept = kept
        self.part = part

    def latest(self) -> TrainingCheckpoint | None:
        return self.kept.checkpoints.get(self.part)

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        self.kept.checkpoints[self.part] = checkpoint
        self.kept.count += 1
        if self.kept.count == self.kept.end_after:
            raise KeyboardInterrupt
        return checkpoint
