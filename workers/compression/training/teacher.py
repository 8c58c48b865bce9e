"""What the teacher says of windows: its logits, or from a cache on disk the largest of them."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.compression.training import split
from workers.compression.training.losses import TopLogits
from workers.compression.training.teacher_cache import TeacherCache


class Targets(Protocol):
    """What a student is compared with, token by token of the windows in order."""

    def __getitem__(self, tokens: slice, /) -> Tensor | TopLogits:
        """The teacher's logits [n, V], or the largest of them."""


class Teacher:
    """A model that says all, and makes nothing durable."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def targets(self, ids: Tensor) -> Targets:
        """What it says of windows [N, T]."""
        return LiveTargets(self._model, self.states(ids))

    @torch.no_grad()
    def states(self, ids: Tensor) -> Tensor:
        """What enters its output head for windows [N, T], [N · T, E]."""
        with torch.autocast(ids.device.type, enabled=False):
            return split.states(self._model, ids).flatten(0, 1)


class CachedTeacher(Teacher):
    """A model that is asked once for each window.

    It is asked for one window at a time: what it says then does not depend on the windows beside it, so that a training
    that was resumed with an empty cache hears the same.
    """

    def __init__(self, model: PreTrainedModel, cache: TeacherCache) -> None:
        super().__init__(model)
        self._cache = cache

    def targets(self, ids: Tensor) -> Targets:
        return TopLogits.joined([self._window(window) for window in ids])

    def _window(self, window: Tensor) -> TopLogits:
        found = self._cache.read(window)
        if found is None:
            targets = LiveTargets(self._model, self.states(window[None]))
            rows = split.slices(len(window), self._model.config.vocab_size)
            found = TopLogits.joined([self._cache.top(targets[each]) for each in rows])
            self._cache.write(window, found)
        return found


class LiveTargets:
    """The teacher's logits, made from what enters its head when they are asked for."""

    def __init__(self, model: PreTrainedModel, states: Tensor) -> None:
        self._model, self.states = model, states

    @torch.no_grad()
    def __getitem__(self, tokens: slice) -> Tensor:
        with torch.autocast(self.states.device.type, enabled=False):
            return split.logits(self._model, self.states[tokens])
