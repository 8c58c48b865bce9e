"""A tiny teacher, students of every kind that compression leaves, and an observer that remembers their training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.models import save_tiny_model
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings

UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
TABLE = "model.embed_tokens"


def opened(directory: Path, name: str = "llama-tied") -> StreamedModel:
    if not directory.exists():
        save_tiny_model(name, directory)
    return StreamedModel.open(directory)


def without_first_block(model: StreamedModel) -> list[CompressedPart]:
    return [CompressedPart("removal", removed=(0,))]


def narrowed(model: StreamedModel) -> list[CompressedPart]:
    """Both MLPs with 20 of their 48 hidden units, the first block gone."""
    shapes = {"gate_proj": (20, 32), "up_proj": (20, 32), "down_proj": (32, 20)}
    tensors = {f"model.layers.1.mlp.{name}.weight": random(shape) for name, shape in shapes.items()}
    return [*without_first_block(model), CompressedPart("narrow", {}, tensors, {})]


def factored(model: StreamedModel) -> list[CompressedPart]:
    """Two sites and the embedding, whose table the tied head reads too, as factors."""
    forms = {
        UP: {"kind": "pivoted", "rank": 8},
        DOWN: {"kind": "kronecker", "terms": 3, "out": [8, 4], "in": [12, 4]},
        TABLE: {"kind": "low_rank", "rank": 16},
    }
    tensors = {
        f"{UP}.basis": random((48, 8)),
        f"{UP}.mixing": random((8, 24)),
        f"{UP}.order": torch.arange(31, -1, -1, dtype=torch.int32),
        f"{DOWN}.left": random((3, 8, 12)),
        f"{DOWN}.right": random((3, 4, 4)),
        f"{TABLE}.codes": random((96, 16)),
        f"{TABLE}.mixing": random((16, 32)),
    }
    return [CompressedPart("factors", forms, tensors, {}), *without_first_block(model)]


def untied(model: StreamedModel) -> list[CompressedPart]:
    """A halved embedding; the head keeps the table of the original for itself."""
    forms = {TABLE: {"kind": "halved", "times": 1}, "lm_head": {"kind": "dense"}}
    order = {f"{TABLE}.order_0": torch.arange(32, dtype=torch.int32)}
    tensors = {f"{TABLE}.codes": random((96, 16)), f"{TABLE}.pairs": random((1, 2)), **order}
    return [CompressedPart("halved", forms, tensors, {})]


def plain(model: StreamedModel) -> list[CompressedPart]:
    return []


STUDENTS = {each.__name__: each for each in (plain, without_first_block, narrowed, factored, untied)}


def edited(model: StreamedModel, kind: str) -> EditedModel:
    return EditedModel(model, STUDENTS[kind](model))


def student_of(directory: Path, kind: str = "without_first_block") -> PreTrainedModel:
    return edited(opened(directory), kind).whole()


class Recorder(Observer):
    """Remembers the checkpoints and the steps of a run, which may resume from an earlier checkpoint."""

    def __init__(self, resumed: TrainingCheckpoint | None = None) -> None:
        self.resumed = resumed
        self.checkpoints: list[TrainingCheckpoint] = []
        self.steps: list[tuple[int, float]] = []

    def latest(self) -> TrainingCheckpoint | None:
        return self.resumed

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        self.checkpoints.append(checkpoint)
        return checkpoint

    def on_step(self, step: int, loss: float, restarts: int) -> None:
        self.steps.append((step, loss))


def checkpoints_of(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    windows: Tensor,
    settings: DistillationSettings,
    *,
    resumed: TrainingCheckpoint | None = None,
    **options: Any,
) -> list[TrainingCheckpoint]:
    """Every checkpoint of a distillation."""
    recorder = Recorder(resumed)
    distil(teacher, student, windows, settings, observer=recorder, **options)
    return recorder.checkpoints


def windows_of_text(windows: int, length: int) -> Tensor:
    """Random token ids [windows, length]."""
    return torch.randint(3, 96, (windows, length), generator=torch.Generator().manual_seed(3))


def random(shape: tuple[int, ...]) -> Tensor:
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
