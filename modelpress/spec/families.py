"""Families of structures: the structure of a given size for a matrix, and the smallest and largest size. Which sizes
between them are on offer, `budgets` says.

A size is a rank, or another integer that orders the structures of a family from the smallest to the largest.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.ranges import Range
from modelpress.spec.structures import Kronecker, LowRank, Pivoted, Structure

RANK_FLOOR = 1 / 12
"""The least rank of a site inside the blocks, as a fraction of its full rank; below it too little signal passes."""

TABLE_RANK_FLOOR = 1 / 4
"""The least rank of embedding and output head, as a fraction of their full rank. It is higher because no other matrix
can make up for an error in a token's embedding or logit."""


class Family(ABC):
    """The structures of one kind that a site may take.

    `factors_embedding`: embedding and output head may take them, too.
    """

    factors_embedding: bool

    @abstractmethod
    def structure(self, site: Site, size: int) -> Structure:
        """Return the structure of this size for the site."""

    @abstractmethod
    def smallest(self, site: Site) -> int:
        """Return the smallest size that the site may take."""

    @abstractmethod
    def largest_inexact(self, site: Site) -> int:
        """Return the largest size that cannot represent every matrix exactly; 0 if no structure fits the site."""

    def stored(self, site: Site, size: int) -> int:
        """Return the number of parameters that the site stores at this size, its bias excluded."""
        return self.structure(site, size).parameters(site.out_features, site.in_features)

    def saving(self, site: Site, size: int) -> int:
        """Return how many parameters the site saves at this size, compared with its matrix."""
        return site.out_features * site.in_features - self.stored(site, size)

    def largest(self, site: Site) -> int:
        """Return the largest size that stores fewer parameters than the matrix; 0 if none does."""
        return self.largest_within(site, site.out_features * site.in_features - 1)

    def largest_within(self, site: Site, budget: int) -> int:
        """Return the largest size that stores at most `budget` parameters; 0 if none does."""
        low, high = 0, self.largest_inexact(site)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.stored(site, middle) <= budget else (low, middle - 1)
        return low

    def sites(self, inventory: Inventory) -> tuple[Site, ...]:
        """Return the sites that the family can make smaller.

        Embedding and output head are left out if their width differs from that of the blocks, as in OPT-350m.
        """
        takes_tables = self.factors_embedding and inventory.embedding.in_features == inventory.hidden_size
        sites = (*inventory.sites, *tables_of(inventory)) if takes_tables else inventory.sites
        return tuple(site for site in sites if self.smallest(site) <= self.largest(site))

    def structures(self, sites: Iterable[Site], sizes: Mapping[str, int]) -> dict[str, Structure]:
        """Return {site: structure} for `sizes` by site name."""
        return {site.name: self.structure(site, sizes[site.name]) for site in sites}

    def range(self, inventory: Inventory) -> Range:
        """Return the range of compression ratios that the family reaches on the model."""
        sites = self.sites(inventory)
        least = min((self.saving(site, self.largest(site)) for site in sites), default=0)
        most = sum(self.saving(site, self.smallest(site)) for site in sites)
        total = inventory.total_parameters
        return Range(total / (total - least), total / (total - most))


@dataclass(frozen=True)
class LowRankFamily(Family):
    """Low-rank structures, sized by the rank; `pivoted` ones store an identity in one factor implicitly."""

    factors_embedding: bool
    pivoted: bool

    def structure(self, site: Site, size: int) -> Structure:
        return Pivoted(size, folded=site.free_outputs) if self.pivoted else LowRank(size)

    def smallest(self, site: Site) -> int:
        floor = TABLE_RANK_FLOOR if site.block is None else RANK_FLOOR
        return max(1, round(min(site.out_features, site.in_features) * floor))

    def largest_inexact(self, site: Site) -> int:
        return min(site.out_features, site.in_features) - 1


@dataclass(frozen=True, order=True)
class Tile:
    """The shape `height` × `width` of the right factor B in a Kronecker product A ⊗ B."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def entries(self) -> int:
        """The number of entries of the right factor."""
        return self.height * self.width


TILES = (Tile(4, 4), Tile(4, 16))
"""The tiles for matrices inside the blocks. At half the parameters, on matrices of a real model, 4 × 16 lowers the
error of 4 × 4 by 5 to 15 %. Larger tiles lower it no further and take more products to compute. The wider of two tiles
of equal size is fitted faster."""

TABLE_TILES = (Tile(1, 16), Tile(1, 64))
"""The tiles for embedding and output head. They have one row, because the rows of different tokens share no pattern."""

LARGEST_SHARE = 3 / 4
"""The most terms of a sum, as a fraction of the number that represents every matrix; more would save hardly anything.
"""


@dataclass(frozen=True)
class KroneckerFamily(Family):
    """Kronecker sums of every tile that fits a site.

    The size of a structure is its position, from 1, in the list of all sums by stored parameters. `permuted`: rows and
    columns of the matrix are reordered to suit the sum.
    """

    permuted: bool = True
    factors_embedding: bool = True

    def structure(self, site: Site, size: int) -> Kronecker:
        return self.sums(site)[size - 1]

    def smallest(self, site: Site) -> int:
        return 1

    def largest_inexact(self, site: Site) -> int:
        return len(self.sums(site))

    def tiles(self, site: Site) -> tuple[Tile, ...]:
        """Return the tiles that divide the site's matrix evenly and are no larger than the left factor."""
        rows, columns = site.out_features, site.in_features
        offered = TABLE_TILES if site.block is None else TILES
        return tuple(
            tile
            for tile in offered
            if rows % tile.height == 0 and columns % tile.width == 0 and tile.entries**2 <= rows * columns
        )

    def sums(self, site: Site) -> tuple[Kronecker, ...]:
        """Return the sums that the site may take, by stored parameters, ascending."""
        return _sums(self, site)

    def sum(self, site: Site, tile: Tile, terms: int) -> Kronecker:
        """Return the sum with `terms` terms whose right factors have the shape `tile`."""
        shapes = (site.out_features // tile.height, tile.height), (site.in_features // tile.width, tile.width)
        folded = self.permuted and site.free_outputs
        permute_out = self.permuted and tile.height > 1 and not folded
        return Kronecker(terms, *shapes, self.permuted, permute_out, folded)

    def most_terms(self, tile: Tile) -> int:
        """Return the greatest number of terms that a sum with this tile may have."""
        return int(LARGEST_SHARE * tile.entries)


@cache
def _sums(family: KroneckerFamily, site: Site) -> tuple[Kronecker, ...]:
    floor = TABLE_RANK_FLOOR if site.block is None else RANK_FLOOR
    sums = (
        family.sum(site, tile, terms)
        for tile in family.tiles(site)
        for terms in range(max(1, round(floor * tile.entries)), family.most_terms(tile) + 1)
    )
    return tuple(sorted(sums, key=lambda each: each.parameters(site.out_features, site.in_features)))


def tables_of(inventory: Inventory) -> tuple[Site, ...]:
    """Return the sites outside the blocks: the embedding, and the output head if it has a matrix of its own."""
    return (inventory.embedding,) if inventory.head is None else (inventory.embedding, inventory.head)


def stored_parameters(inventory: Inventory, structures: Mapping[str, Structure]) -> int:
    """Return the number of parameters that the whole model stores with these {site: structure}.

    A tied output head that is given a structure adds the parameters of that structure. Raises MalformedStructure if a
    structure does not fit its site.
    """
    sites = {site.name: site for site in (*inventory.sites, *tables_of(inventory))}
    total = inventory.total_parameters
    for name, structure in structures.items():
        site = sites.get(name, inventory.embedding)
        before = site.out_features * site.in_features if name in sites else 0
        total += structure.parameters(site.out_features, site.in_features) - before
    return total
