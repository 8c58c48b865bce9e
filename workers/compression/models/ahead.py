"""Read the block that will be asked for next, and copy it to the card, while the caller computes with the present one.

Promise: the caller gets what reading at once would have given it; after `drop`, nothing read before.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from workers.compression.lane import Lane

Tensors = dict[str, Tensor]

Allocate = Callable[[torch.Size, torch.dtype], Tensor]


class Ahead:
    """The tensors of blocks on the device, by the block's number; the next block's are read in a thread."""

    def __init__(
        self, read: Callable[[int, Allocate], Tensors], order: Callable[[], Sequence[int]], lane: Lane
    ) -> None:
        """Read ahead with `read`, which returns a block's tensors in memory that the given function allocates.

        `order` returns the numbers of all blocks in the order in which they are mostly asked for, or the reverse.
        """
        self._read, self._order, self._lane = read, order, lane
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
        self._begun: tuple[int, Future[Callable[[], Tensors]]] | None = None
        self._last: int | None = None

    def take(self, index: int) -> Tensors:
        """Return a block's tensors on the device, and begin to read the next one's."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == index:
            arriving = begun[1].result()
        else:
            _settle(begun)
            arriving = self._bring(index)
        following = self._following(index)
        self._last = index
        if following is not None:
            self._begun = following, self._thread.submit(self._bring, following)
        return arriving()

    def drop(self) -> None:
        """Forget what was read ahead, and return once nothing is being read: call this before a block changes."""
        begun, self._begun = self._begun, None
        _settle(begun)

    def _bring(self, index: int) -> Callable[[], Tensors]:
        """Read a block into the host's memory, and begin to copy it to the device."""
        return self._lane.to_device(self._read(index, self._lane.empty))

    def _following(self, index: int) -> int | None:
        """Return the next block in the direction in which the last two were asked for; None behind the end."""
        order = list(self._order())
        if index not in order:
            return None
        backwards = self._last is not None and index < self._last
        place = order.index(index) + (-1 if backwards else 1)
        return order[place] if 0 <= place < len(order) else None


def _settle(begun: tuple[int, Future[Callable[[], Tensors]]] | None) -> None:
    """Wait until a reading has ended, however it ended."""
    if begun is not None and not begun[1].cancel():
        begun[1].exception()
