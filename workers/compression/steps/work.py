"""What a step is given, and what carries it out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from workers.compression.math.sensitivity import Sensitivity
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.loop import Observer


class CheckpointStore(Protocol):
    """Keeps how far the distillation within a part is. A part is known by its name."""

    def observer(self, part: str) -> Observer:
        """Return the observer of the distillation within a part, which keeps that part's checkpoints."""


@dataclass(frozen=True)
class Work:
    """What a step works on: the `original`, and the `model` that the steps before have made of it.

    `ids` are calibration tokens [sequences, length]; `sensitivities` are by the names of the sites and may be empty;
    `seed` is that of the labels which are drawn where a step measures sensitivities itself.
    """

    original: StreamedModel
    model: EditedModel
    ids: Tensor
    sensitivities: Mapping[str, Sensitivity]
    checkpoints: CheckpointStore | None = None
    seed: int = 0

    def observer(self, part: str) -> Observer | None:
        """Return the observer of the distillation within a part; None where no checkpoints are kept."""
        return None if self.checkpoints is None else self.checkpoints.observer(part)


@dataclass(frozen=True)
class Runner:
    """What carries out a kind of step.

    `run(step, work, finished)` yields the parts behind those that are `finished` already, in order. Where it
    `applies_at_once`, each part is in `work.model` before the next one is asked for, the finished ones included;
    otherwise `work.model` stays as the steps before have left it until the step ends.
    """

    run: Callable[[Any, Work, Sequence[CompressedPart]], Iterator[CompressedPart]]
    applies_at_once: bool
