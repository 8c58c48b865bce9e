"""A matrix in one of the codes of `spec.codes`: what is stored of it, and the weights that this stands for.

encoded = Encoded.read(part.tensors, "model.embed_tokens.weight", CODES["q8_0"])
encoded.decoded()                     # [out, in], float32: exactly what an engine computes with
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from modelpress.spec.codes import CODES, Code

LEVELS, UNITS, SCALES = ":levels", ":units", ":scales"
"""Suffixes to a tensor's name, for the tensors that are stored in its place."""


@dataclass(frozen=True)
class Encoded:
    """A matrix [out, in] in a code.

    Attributes:
        code: the code.
        levels: number of each weight's level, uint8 [out, in].
        units: each block's unit, float16 or bfloat16 [out, in / block], or [out, 1] for codes with one for each row.
        scales: each group's scale in steps of its unit, int8 [out, in / group]; None where a block is one group.
    """

    code: Code
    levels: Tensor
    units: Tensor
    scales: Tensor | None = None

    def decoded(self) -> Tensor:
        """Return the weights [out, in] in float32."""
        rows, columns = self.levels.shape
        steps = self.units.float()
        if self.scales is not None:
            steps = steps.repeat_interleave(self.code.groups, dim=1) * self.scales.float()
        table = _table(self.code, self.levels.device)
        values = table.index_select(0, self.levels.flatten().int()).view(rows, -1, self.code.group or columns)
        return values.mul_(steps.unsqueeze(-1)).view(rows, columns)

    def with_units(self, units: Tensor) -> Self:
        """Return the matrix with other units [out, blocks], in the precision in which its units are stored."""
        return replace(self, units=units.to(self.units.dtype))

    def split(self, rows: Sequence[int]) -> list[Self]:
        """Return matrices of `rows` successive rows each."""
        scales = [None] * len(rows) if self.scales is None else torch.split(self.scales, list(rows))
        split = (torch.split(each, list(rows)) for each in (self.levels, self.units))
        return [type(self)(self.code, *parts) for parts in zip(*split, scales, strict=True)]

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of several matrices of one code as one matrix."""
        scales = [part.scales for part in parts if part.scales is not None]
        levels, units = (torch.cat([getattr(part, name) for part in parts]) for name in ("levels", "units"))
        return cls(parts[0].code, levels, units, torch.cat(scales) if scales else None)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors that are stored in place of the tensor `name`."""
        stored = {f"{name}{LEVELS}": self.levels, f"{name}{UNITS}": self.units}
        return stored if self.scales is None else stored | {f"{name}{SCALES}": self.scales}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], name: str, code: Code) -> Self:
        """Return the matrix whose tensors `tensors` holds in place of the tensor `name`. Raises KeyError."""
        scales = tensors[f"{name}{SCALES}"] if code.scales is not None else None
        return cls(code, tensors[f"{name}{LEVELS}"], tensors[f"{name}{UNITS}"], scales)


@functools.cache
def _table(code: Code, device: torch.device) -> Tensor:
    """Return the levels of a code on a device. They are copied there once: each copy makes the host wait."""
    with torch.inference_mode(False):
        return torch.tensor(code.levels, dtype=torch.float32, device=device)


class DecodedTensors(Mapping[str, Tensor]):
    """The tensors of a part by their own names; one that is stored in a code is decoded at each look-up.

    A matrix is always encoded as [out, in]; those in `transposed` are [in, out] in the model.
    """

    def __init__(
        self, stored: Mapping[str, Tensor], encodings: Mapping[str, str], transposed: Iterable[str] = ()
    ) -> None:
        self._stored = stored
        self._transposed = frozenset(transposed)
        self._codes = {name: CODES[code] for name, code in encodings.items()}
        hidden = {f"{name}{suffix}" for name in encodings for suffix in (LEVELS, UNITS, SCALES)}
        self._names = (*(name for name in stored if name not in hidden), *encodings)

    def encoded(self, name: str) -> Encoded:
        """Return a tensor that is stored in a code, as [out, in]. Raises KeyError for any other."""
        return Encoded.read(self._stored, name, self._codes[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the model."""
        shape = tuple(self._stored[f"{name}{LEVELS}" if name in self._codes else name].shape)
        return shape[::-1] if name in self._transposed else shape

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._codes:
            return self._stored[name]
        decoded = self.encoded(name).decoded()
        return decoded.T.contiguous() if name in self._transposed else decoded

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
