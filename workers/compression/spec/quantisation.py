"""Choose the integer grid that each matrix is rounded to. Torch-free, because the service checks recipes with it.

A symmetric grid of 2^bits steps has one scale for each row, or for each group of neighbouring weights in a row.
Embedding and output head are not rounded, because they suffer most and fast kernels expect them whole. Norms and biases
are too small to matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from workers.compression.spec.errors import CompressionError
from workers.compression.spec.inventory import Inventory

GROUP_SIZE = 32
"""The smallest group size that fast kernels read. Groups of 64 save 6 % more of a matrix but cost perplexity:
SmolLM2-135M rose from 15.8 to 23.7 with them, and to 22.2 with groups of 32."""


class NotQuantisable(CompressionError):
    """The model has no matrices that can be rounded by this scheme."""

    code = "method_does_not_fit"


@dataclass(frozen=True)
class Grid:
    """A symmetric grid of 2^`bits` steps. `group` neighbouring weights of a row share a scale; None: the whole row."""

    bits: int
    group: int | None = None


@dataclass(frozen=True)
class Scheme:
    """A way of rounding a model's matrices; `grouped` gives each group of a row its own scale."""

    name: str
    description: str
    bits: int
    grouped: bool


_ALL = (
    Scheme("int8", "8 bits for each weight and one scale for each row", bits=8, grouped=False),
    Scheme(
        "int4",
        f"4 bits for each weight and one scale for each {GROUP_SIZE} of a row; a matrix whose width is not a multiple "
        f"of {GROUP_SIZE} is rounded as in int8",
        bits=4,
        grouped=True,
    ),
)

SCHEMES: Mapping[str, Scheme] = MappingProxyType({scheme.name: scheme for scheme in _ALL})
"""Every scheme by name."""


def grids(inventory: Inventory, name: str) -> dict[str, Grid]:
    """Return {site: grid} under the scheme `name` for every site inside the blocks.

    A matrix whose width is not a multiple of the group size is rounded as in `int8`.

    Raises:
        NotQuantisable: if the architecture stores transposed matrices, or no matrix has a whole number of groups.
    """
    scheme = SCHEMES[name]
    if any(site.layout != "linear" for site in inventory.sites):
        raise NotQuantisable(
            f"{inventory.model_type} stores its matrices transposed; compressed-tensors cannot hold them"
        )
    per_row = Grid(SCHEMES["int8"].bits)
    if not scheme.grouped:
        return {site.name: per_row for site in inventory.sites}
    if all(site.in_features % GROUP_SIZE for site in inventory.sites):
        raise NotQuantisable(f"no matrix has a width that is a multiple of {GROUP_SIZE}, as {name} needs; choose int8")
    grouped = Grid(scheme.bits, GROUP_SIZE)
    return {site.name: per_row if site.in_features % GROUP_SIZE else grouped for site in inventory.sites}
