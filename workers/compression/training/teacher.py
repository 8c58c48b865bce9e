"""The teacher's predictions for windows of tokens: its logits, or the largest of them from a cache on disk."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.compression.training import split
from workers.compression.training.losses import TopLogits
from workers.compression.training.teacher_cache import TeacherCache


class Targets(Protocol):
    """The predictions that a student is compared with, indexed by token over all windows."""

    def __getitem__(self, tokens: slice, /) -> Tensor | TopLogits:
        """Return the teacher's logits [n, V] of these tokens, or the largest of them."""


class Teacher:
    """A teacher that computes everything it is asked for and caches nothing."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def targets(self, ids: Tensor) -> Targets:
        """Return the targets for windows [N, T]."""
        return LiveTargets(self._model, self.states(ids))

    @torch.no_grad()
    def states(self, ids: Tensor) -> Tensor:
        """Return the states [N · T, E] that enter the teacher's output head for windows [N, T]."""
        with torch.autocast(ids.device.type, enabled=False):
            return split.states(self._model, ids).flatten(0, 1)


class CachedTeacher(Teacher):
    """A teacher that computes each window once and caches its largest logits on disk.

    It computes one window at a time: the result does not depend on the windows beside it, so a run that is resumed
    with an empty cache sees the same targets.
    """

    def __init__(self, model: PreTrainedModel, cache: TeacherCache) -> None:
        super().__init__(model)
        self._cache = cache

    def targets(self, ids: Tensor) -> Targets:
        return TopLogits.joined([self._window(window) for window in ids])

    def _window(self, window: Tensor) -> TopLogits:
        top = self._cache.read(window)
        if top is None:
            targets = LiveTargets(self._model, self.states(window[None]))
            rows = split.slices(len(window), self._model.config.vocab_size, split.logits_at_a_time(window.device))
            top = TopLogits.joined([self._cache.top(targets[tokens]) for tokens in rows])
            self._cache.write(window, top)
        return top


class LiveTargets:
    """The teacher's logits, computed from the states [n, E] that enter its head when they are indexed."""

    def __init__(self, model: PreTrainedModel, states: Tensor) -> None:
        self._model, self.states = model, states

    @torch.no_grad()
    def __getitem__(self, tokens: slice) -> Tensor:
        with torch.autocast(self.states.device.type, enabled=False):
            return split.logits(self._model, self.states[tokens])
