"""Distillation beside a loop that does nothing but what must be done, in turns."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import sequences_at_a_time
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings


class Turns(Observer):
    """Seconds of each turn of ours and of the bare loop, which takes its own whenever ours has saved a checkpoint."""

    def __init__(self, bare: Iterator[None]) -> None:
        self.turns: list[tuple[float, float]] = []
        self._bare = bare
        self._started = now()

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        """Note how long the turn took, and let the bare loop take one."""
        ended = now()
        next(self._bare)
        restarted = now()
        self.turns.append((ended - self._started, restarted - ended))
        self._started = restarted
        return checkpoint


def now() -> float:
    """Return a clock reading in seconds, after a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def student_without(directory: Path, removed: int, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Return the model in float32 without `removed` blocks of its middle."""
    model = StreamedModel.open(directory, device=device)
    first = (model.inventory.blocks - removed) // 2
    part = CompressedPart("removal", removed=tuple(range(first, first + removed)))
    return EditedModel(model, [part]).whole()


def bare_loop(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    text: Tensor,
    settings: DistillationSettings,
    compute: torch.dtype | None,
) -> Iterator[None]:
    """Train on windows [N, T] as one writes it by hand; yield after every `settings.interval` steps."""
    student.requires_grad_(True)
    device, length = student.device, text.shape[1]
    together = settings.micro_batch_size or sequences_at_a_time(device, length)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True)
    for step in range(settings.steps(length)):
        optimizer.zero_grad()
        chosen = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size) % len(text)
        for ids in torch.split(text[chosen].to(device), together):
            with torch.no_grad():
                wanted = teacher(ids, use_cache=False).logits.float().log_softmax(-1)
            with torch.autocast(device.type, compute, enabled=compute is not None):
                logits = student(ids, use_cache=False).logits
            found = logits.float().log_softmax(-1)
            lost = functional.kl_div(found, wanted, reduction="sum", log_target=True)
            torch.autograd.backward(lost / (settings.batch_size * length))
        nn.utils.clip_grad_norm_(student.parameters(), settings.max_gradient_norm)
        optimizer.step()
        if (step + 1) % settings.interval == 0:
            yield
