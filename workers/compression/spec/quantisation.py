"""Which grid of integers each matrix is rounded to, and for which models there is none. Torch-free: POST asks it.

A symmetric grid of 2^bits steps has one scale for each row, or for each `group` of neighbouring numbers in a row. The
embedding and the output head stay as they are, since they suffer most and fast kernels expect them whole; norms and
biases stay as well, since they are too small to matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from workers.compression.spec.errors import CompressionError
from workers.compression.spec.inventory import Inventory

GROUP_SIZE = 32
"""The smallest that fast kernels read. Groups of 64 save 6 % more of a matrix, but cost perplexity: SmolLM2-135M came
from 15.8 to 23.7 with them, and to 22.2 with these."""


class NotQuantisable(CompressionError):
    """What a model holds cannot be rounded in this way."""

    code = "method_does_not_fit"


@dataclass(frozen=True)
class Grid:
    """`group` numbers of a row share a scale; None: all of them."""

    bits: int
    group: int | None = None


@dataclass(frozen=True)
class Scheme:
    name: str
    description: str
    bits: int
    grouped: bool


_ALL = (
    Scheme("int8", "8 bits for each number and one scale for each row", bits=8, grouped=False),
    Scheme(
        "int4",
        f"4 bits for each number and one scale for each {GROUP_SIZE} of a row; a matrix whose width is no multiple of "
        "that is kept as in int8",
        bits=4,
        grouped=True,
    ),
)

SCHEMES: Mapping[str, Scheme] = MappingProxyType({scheme.name: scheme for scheme in _ALL})


def grids(inventory: Inventory, name: str) -> dict[str, Grid]:
    """Site name → its grid under the scheme `name`, for every site inside the blocks. Raises NotQuantisable."""
    scheme = SCHEMES[name]
    if any(site.layout != "linear" for site in inventory.sites):
        raise NotQuantisable(f"{inventory.model_type} stores its matrices transposed, which compressed-tensors rejects")
    per_row = Grid(SCHEMES["int8"].bits)
    if not scheme.grouped:
        return {site.name: per_row for site in inventory.sites}
    if all(site.in_features % GROUP_SIZE for site in inventory.sites):
        raise NotQuantisable(f"no matrix is as wide as a multiple of {GROUP_SIZE}, so {name} has no groups")
    grouped = Grid(scheme.bits, GROUP_SIZE)
    return {site.name: per_row if site.in_features % GROUP_SIZE else grouped for site in inventory.sites}
