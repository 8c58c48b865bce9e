"""The codes in which a matrix can be stored with few bits a weight, and what each costs. Torch-free, for the service.

    CODES["iq4_nl"].bytes(576, 1536)      # bytes of a matrix [576, 1536]
    CODES["q6_k"].fits(576)               # False: its blocks are 256 weights long

A code stores each weight as the number of a level, and a scale for each group of neighbouring weights in a row:

    weight = unit · scale · level

`unit` is a floating-point number of 16 bits, or a power of two, for each block, a block being one or several groups.
`scale` is a small integer for each group where a block has several, and 1 where it has one.
`workers.compression.encoded` computes with them. To add a code, add an entry to `REGISTERED`, and where a file format
stores it, its packing there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Code:
    """One way to store a matrix with few bits a weight.

    Attributes:
        name: the name in plans, reports and registries.
        levels: the values that a weight can have in steps of its scale, ascending.
        bits: bits that the number of a level takes.
        group: neighbouring weights of a row that share a scale; None: the whole row.
        groups: groups in a block, which share a unit.
        scales: least and greatest scale of a group, in steps of its block's unit; None where a block is one group.
        scale_bits: bits that a group's scale takes; 0 where a block is one group.
        unit_bits: bits that a block's unit takes: 16 for a floating-point number, 8 for a power of two.
        signed: whether a unit may be negative, which turns the levels round.
    """

    name: str
    levels: tuple[int, ...]
    bits: int
    group: int | None = None
    groups: int = 1
    scales: tuple[int, int] | None = None
    scale_bits: int = 0
    unit_bits: Literal[8, 16] = 16
    signed: bool = True

    @property
    def block(self) -> int | None:
        """The number of weights in a block; None: the whole row."""
        return None if self.group is None else self.group * self.groups

    @property
    def powers(self) -> bool:
        """Whether units are powers of two."""
        return self.unit_bits < 16

    @property
    def bits_per_weight(self) -> float:
        """The stored bits per weight, units and scales included; a unit for the whole row is not counted."""
        if self.group is None:
            return float(self.bits)
        return self.bits + self.scale_bits / self.group + self.unit_bits / (self.group * self.groups)

    def fits(self, columns: int) -> bool:
        """Return whether rows of `columns` weights are a whole number of blocks."""
        return self.block is None or columns % self.block == 0

    def bytes(self, rows: int, columns: int) -> int:
        """Return the stored bytes of a matrix [rows, columns] that the code fits."""
        units = rows * self.unit_bits if self.group is None else 0
        return round(rows * columns * self.bits_per_weight + units) // 8


def _symmetric(bits: int) -> tuple[int, ...]:
    """Return the integers that `bits` bits hold in two's complement."""
    return tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


# The level tables of ggml's types are facts of its file format (ggml-common.h, gguf-py/gguf/quants.py).
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

# Twice the numbers of four bits with a sign, two bits of exponent and one of mantissa (OCP Microscaling Formats 1.0).
_E2M1 = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)

REGISTERED: tuple[Code, ...] = (
    Code("int8", _symmetric(8), bits=8, signed=False),
    Code("int4_g32", _symmetric(4), bits=4, group=32, signed=False),
    Code("int4_g64", _symmetric(4), bits=4, group=64, signed=False),
    Code("int4_g128", _symmetric(4), bits=4, group=128, signed=False),
    Code("q8_0", _symmetric(8), bits=8, group=32),
    Code("q6_k", _symmetric(6), bits=6, group=16, groups=16, scales=(-128, 127), scale_bits=8),
    Code("q5_0", _symmetric(5), bits=5, group=32),
    Code("iq4_nl", _NONLINEAR, bits=4, group=32),
    Code("iq4_xs", _NONLINEAR, bits=4, group=32, groups=8, scales=(-32, 31), scale_bits=6),
    Code("mxfp4", _E2M1, bits=4, group=32, unit_bits=8, signed=False),
    Code("q4_0", _symmetric(4), bits=4, group=32),
    Code("q3_k", _symmetric(3), bits=3, group=16, groups=16, scales=(-32, 31), scale_bits=6),
)

CODES: Mapping[str, Code] = MappingProxyType({code.name: code for code in REGISTERED})
"""Every code by name."""
