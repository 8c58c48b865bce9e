"""A card that is not there: tensors that claim to lie on another device, which the CPU computes.

    with card() as waits:
        model = StreamedModel.open(directory, device=CARD)
        ...
    waits["copy to the host"]       # how often the host waited for the card, by what made it wait

An operation on a tensor of the card and one of the CPU raises, as on CUDA; only numbers, which have no dimensions, may
lie on either. torch's device `lazy` lends its name: builds for the CPU know it, and autograd serves it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("lazy", 0)

TO_HOST, TO_CARD, NUMBER = "copy to the host", "copy to the card", "_local_scalar_dense"

AWAITED = frozenset({NUMBER, "nonzero", "equal", "masked_select", "_unique2", "bincount"})
"""Operations of which the host needs a result, or its size."""

COPIES = frozenset({"_to_copy", "copy_"})
"""Operations on tensors of two devices."""

INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
"""Operations on the card whose indices may lie on the CPU, from where they are copied."""


@contextmanager
def card() -> Iterator[Counter[str]]:
    """Make CARD a device while the context lasts; count what makes the host wait for it."""
    waits: Counter[str] = Counter()
    plain = torch.tensor

    def tensor(data: Any, *, device: torch.device | None = None, **options: Any) -> Tensor:
        made: Tensor = plain(data, **options)
        return made if device is None else made.to(device)

    # `torch.tensor` asks no dispatch mode where its tensor goes.
    with _Card(waits), patch.object(torch, "tensor", tensor):
        yield waits


class _OnCard(Tensor):
    """A tensor of the card; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> "_OnCard":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        found: _OnCard = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=CARD, **layout)
        return found

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def new_tensor(self, data: Any, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=self.dtype).to(CARD)

    def __repr__(self, **_: Any) -> str:
        return f"on the card: {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {}, Counter())


class _Card(TorchDispatchMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {}, self._waits)


def _carried_out(func: Any, args: tuple[Any, ...], keywords: Mapping[str, Any], waits: Counter[str]) -> Any:
    """Return what an operation of torch returns; its tensors lie on the card where CUDA would leave them there."""
    name = func._schema.name.rpartition("::")[2]
    tensors = [each for each in tree_leaves((args, keywords)) if isinstance(each, Tensor)]
    ours = [each for each in tensors if isinstance(each, _OnCard)]
    on_host = [each for each in tensors if each.device.type == "cpu" and each.ndim]
    named = None if keywords.get("device") is None else torch.device(keywords["device"]).type
    to_card = bool(ours) if named is None else named == CARD.type
    if name == "copy_":
        to_card = isinstance(args[0], _OnCard)
    if ours and on_host and name not in COPIES:
        if name not in INDEXING or not isinstance(args[0], _OnCard):
            raise RuntimeError(f"{name}: expected all tensors to be on one device, found {CARD} and cpu")
        waits[TO_CARD] += 1
    if name in COPIES and named != "meta" and bool(ours) != to_card:
        waits[TO_CARD if to_card else TO_HOST] += 1
    if name == "copy_" and ours and on_host:
        waits[TO_CARD if to_card else TO_HOST] += 1
    masks = name in INDEXING and any(each.dtype == torch.bool for each in tensors[1:])
    if ours and (name in AWAITED or masks):
        waits[name] += 1
    if name == "histc" and ours:
        # The CPU counts no whole numbers, as CUDA does.
        args = (args[0].float(), *args[1:])
    found = func(*tree_map(_held, args), **{key: tree_map(_held, each) for key, each in keywords.items()})
    if not to_card:
        return found
    # What an operation changes in place, it also returns.
    known = {id(each.held): each for each in ours}
    return tree_map(lambda each: known.get(id(each), _on_card(each)), found)


def _held(value: Any) -> Any:
    if isinstance(value, _OnCard):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == CARD.type else value


def _on_card(value: Any) -> Any:
    return _OnCard(value) if isinstance(value, Tensor) and value.device.type == "cpu" else value
