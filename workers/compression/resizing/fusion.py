"""Removing blocks whose neighbours take over what they did; the result is an ordinary checkpoint with fewer blocks.

    edited = EditedModel(original)
    for part in fuse(original, edited, ids, removals(edited, ids, 8), FusionSettings()):
        ...                                           # one part per removed block, durable

For each block: the last projection before the gap is refitted in closed form, and those after it in the group partly,
so that what remains of the error is undone; then, where it is asked for, the group takes up the removed block's weights
by distillation. The reference is always the original model.

Promise: one group of blocks is in memory at a time, beside the streams. Killed and resumed, also within a distillation,
it gives the same parts.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart, Finished
from workers.compression.resizing.grafting import Ranks, folded, graft
from workers.compression.resizing.influence import BlockScores
from workers.compression.resizing.local_distillation import Checkpoint, Distillation, distil, relative_error
from workers.compression.resizing.refit import Refit, projection_tensors, refit
from workers.compression.resizing.streams import Stream
from workers.compression.resizing.variants import run_in_batches

_BEFORE = Refit(0.5)
_AFTER = Refit(1.0, share=0.5)
_RANKS = Ranks(coefficients=32, correction=32)


@dataclass(frozen=True)
class FusionSettings:
    """How a removed block is fused into its group of `group` blocks, itself included.

    `before` is the refit of the block before the gap, `after` that of the group's blocks behind it; None leaves either
    out. `distillation` None keeps the closed form alone; otherwise there is a checkpoint every `interval` steps. The
    `teacher` is the original, or the model as it was before this removal.
    """

    group: int = 8
    before: Refit | None = _BEFORE
    after: Refit | None = _AFTER
    ranks: Ranks = _RANKS
    distillation: Distillation | None = None
    teacher: Literal["original", "current"] = "original"
    interval: int = 100


FUSEGPT = FusionSettings(
    group=8,
    before=None,
    after=None,
    ranks=Ranks(coefficients=128, correction=128),
    distillation=Distillation(
        tokens=20 * 1024 * 2048,
        batch=8,
        rate=9.65e-6,
        coefficient_rate=1e-3,
        betas=(0.9, 0.95),
        epsilon=1e-8,
        warm_up=0.0,
        clip=math.inf,
        loss="batch_divergence",
        float32=False,
    ),
    teacher="current",
)
"""The published procedure: 20 epochs over 1024 sequences of 2048 tokens for each fusion, in the model's own dtype."""


class CheckpointStore(Protocol):
    """Where the checkpoints within a distillation are kept."""

    def latest(self, part: int) -> Checkpoint | None:
        """The last one that was written for the part, if any."""

    def keep(self, part: int, checkpoint: Checkpoint) -> None:
        """Writes one down; its tensors change afterwards."""


def group_around(kept: tuple[int, ...], block: int, size: int) -> tuple[int, ...]:
    """The `size` blocks of those kept among which `block` lies in the middle, or nearer to an end of the model."""
    place = kept.index(block)
    start = max(0, min(place - size // 2, len(kept) - size))
    return kept[start : start + size]


def fuse(
    original: StreamedModel,
    edited: EditedModel,
    ids: Tensor,
    removals: Iterable[tuple[int, BlockScores]],
    settings: FusionSettings,
    *,
    start: int = 0,
    finished: Finished | None = None,
    checkpoints: CheckpointStore | None = None,
) -> Iterator[CompressedPart]:
    """Yields one part for each of the `removals`, numbered from `start` on, and applies it to `edited`.

    `ids` are calibration tokens [sequences, length]. When resuming, `finished` gives the parts before `start`, which
    are applied first; `removals` are then those still to come. Raises ValueError for a `start` above 0 without
    `finished`.
    """
    if start and finished is None:
        raise ValueError("to resume, say where the finished parts are")
    if finished is not None:
        for index in range(start):
            edited.apply(finished(index))
    fusion = _Fusion(original, edited, ids, settings, checkpoints)
    for index, (block, scores) in enumerate(removals, start):
        yield fusion.part(index, block, scores)


class _Fusion:
    """Both models' streams, led on from one removal to the next."""

    def __init__(
        self,
        original: StreamedModel,
        edited: EditedModel,
        ids: Tensor,
        settings: FusionSettings,
        checkpoints: CheckpointStore | None,
    ) -> None:
        self.edited = edited
        self.settings = settings
        self.checkpoints = checkpoints
        self.original_stream = Stream(original, ids)
        self.edited_stream = Stream(edited, ids)

    def part(self, index: int, removed: int, scores: BlockScores) -> CompressedPart:
        """The fusion of one block, which is applied to the edited model."""
        group = group_around(self.edited.kept, removed, self.settings.group)
        entering = self.edited_stream.entering(group[0])
        with ExitStack() as stack:
            blocks = {block: stack.enter_context(self.edited.block(block)) for block in group if block != removed}
            tensors = self._refitted(blocks, removed, entering)
            if self.settings.distillation is not None:
                tensors |= self._distilled(index, blocks, removed, entering, self.settings.distillation)
            error = self._error(blocks, removed, entering)
        name = f"{self.edited.inventory.block_prefix}.{removed}"
        part = CompressedPart(
            index,
            name,
            structures={},
            tensors=tensors,
            errors={name: error},
            removed=(removed,),
            scores=scores.values,
        )
        self.edited.apply(part)
        self.edited_stream.forget(group[0])
        return part

    def _refitted(self, blocks: Mapping[int, nn.Module], removed: int, hidden: Tensor) -> dict[str, Tensor]:
        """Refits the last projections in place; their tensors by their full names."""
        tensors: dict[str, Tensor] = {}
        if self.settings.before is None and self.settings.after is None:
            return tensors
        before = max((block for block in blocks if block < removed), default=None)
        for index, block in blocks.items():
            settings = self.settings.before if index == before else self.settings.after if index > removed else None
            if settings is None:
                hidden = run_in_batches(self.edited, block, index, hidden)
                continue
            targets = self.original_stream.entering(_following(self.edited, index, removed))
            hidden = refit(self.edited, block, index, hidden, targets, settings)
            tensors |= projection_tensors(self.edited, block, index)
        return tensors

    def _distilled(
        self, part: int, blocks: Mapping[int, nn.Module], removed: int, entering: Tensor, settings: Distillation
    ) -> dict[str, Tensor]:
        """Trains the blocks with what they take up of the removed one; all their tensors by their full names."""
        with self.edited.block(removed) as donor:
            for index, block in blocks.items():
                dtype = torch.float32 if settings.float32 else self.edited.dtype
                graft(block, donor, self.settings.ranks, dtype=dtype, seed=index)
        teacher = self.original_stream if self.settings.teacher == "original" else self.edited_stream
        targets = teacher.entering(_following(self.edited, max(blocks), removed))
        resumed = self.checkpoints.latest(part) if self.checkpoints else None
        for checkpoint in distil(
            self.edited, blocks, entering, targets, settings, interval=self.settings.interval, resumed=resumed
        ):
            if self.checkpoints:
                self.checkpoints.keep(part, checkpoint)
        prefix = self.edited.inventory.block_prefix
        return {
            f"{prefix}.{index}.{name}": each for index, block in blocks.items() for name, each in folded(block).items()
        }

    @torch.no_grad()
    def _error(self, blocks: Mapping[int, nn.Module], removed: int, hidden: Tensor) -> float:
        """How far the group's output is from the original's, relative, as the root mean square over tokens."""
        for index, block in blocks.items():
            hidden = run_in_batches(self.edited, block, index, hidden)
        targets = self.original_stream.entering(_following(self.edited, max(blocks), removed))
        pairs = zip(hidden, targets, strict=True)
        return math.sqrt(sum(relative_error(one.float(), other.float()).item() for one, other in pairs) / len(hidden))


def _following(model: EditedModel, index: int, removed: int) -> int:
    """The block that comes next once `removed` is gone, or the number of blocks: what enters it in the original is what
    should leave the block `index`."""
    later = (block for block in model.kept if block > index and block != removed)
    return next(later, model.inventory.blocks)
