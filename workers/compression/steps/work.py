"""The input of a step, and the runner that carries it out."""

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
    """Keeps the training checkpoints of distillations, by the name of the part that they belong to."""

    def observer(self, part: str) -> Observer:
        """Return an observer that keeps the checkpoints of the distillation within the part `part`."""


@dataclass(frozen=True)
class Work:
    """The input of a step.

    Attributes:
        original: the original model.
        model: the model as the earlier steps have left it.
        ids: calibration tokens [sequences, length].
        sensitivities: measured sensitivities by site name; may be empty.
        checkpoints: where distillations keep checkpoints; None keeps none.
        seed: seed of the labels that are drawn if a step measures sensitivities itself.
    """

    original: StreamedModel
    model: EditedModel
    ids: Tensor
    sensitivities: Mapping[str, Sensitivity]
    checkpoints: CheckpointStore | None = None
    seed: int = 0

    def observer(self, part: str) -> Observer | None:
        """Return the observer of the distillation within the part `part`; None if no checkpoints are kept."""
        return None if self.checkpoints is None else self.checkpoints.observer(part)


@dataclass(frozen=True)
class Runner:
    """The function that carries out one kind of step, and when its parts take effect.

    Attributes:
        run: called as `run(step, work, finished)`; yields, in order, the parts after the `finished` ones.
        applies_at_once: if true, the caller applies each part to `work.model` before it asks for the next one, the
            finished parts included. Otherwise `work.model` does not change until the step ends.
    """

    run: Callable[[Any, Work, Sequence[CompressedPart]], Iterator[CompressedPart]]
    applies_at_once: bool
