"""Families of structures: which structure of a given size a matrix takes, and which sizes it may have.

A size is a rank, or whatever else orders the structures of a family from the smallest to the largest.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.ranges import Range
from workers.compression.spec.structures import Kronecker, LowRank, Pivoted, Structure

RANK_FLOOR = 1 / 12
"""No site falls below this fraction of its full rank: what is left of it would no longer carry the signal."""

TABLE_RANK_FLOOR = 1 / 4
"""The embedding of a token has no second chance further down the network, nor has its logit: their floor is higher."""


class Family(ABC):
    """The structures of one kind that a site may take. `factors_embedding`: tables of tokens take them, too."""

    factors_embedding: bool

    @abstractmethod
    def structure(self, site: Site, size: int) -> Structure:
        """Return the structure of that size for the site."""

    @abstractmethod
    def smallest(self, site: Site) -> int:
        """Return the least size that the site may be given."""

    @abstractmethod
    def largest_inexact(self, site: Site) -> int:
        """Return the largest size that cannot hold every matrix exactly; 0 where the family does not fit the site."""

    def stored(self, site: Site, size: int) -> int:
        """Return how many numbers the site stores at that size, its bias excluded."""
        return self.structure(site, size).parameters(site.out_features, site.in_features)

    def saving(self, site: Site, size: int) -> int:
        """Return how many numbers the site stores less at that size than as it is."""
        return site.out_features * site.in_features - self.stored(site, size)

    def largest(self, site: Site) -> int:
        """Return the largest size that stores less than the matrix; 0 where none does."""
        return self.largest_within(site, site.out_features * site.in_features - 1)

    def largest_within(self, site: Site, budget: int) -> int:
        """Return the largest size that stores at most `budget` numbers; 0 where none does."""
        low, high = 0, self.largest_inexact(site)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.stored(site, middle) <= budget else (low, middle - 1)
        return low

    def sites(self, inventory: Inventory) -> tuple[Site, ...]:
        """Return the sites that the family may touch and that have something to give.

        Tables of another width than the blocks lie behind a projection, as in OPT-350m, and stay whole.
        """
        takes_tables = self.factors_embedding and inventory.embedding.in_features == inventory.hidden_size
        sites = (*inventory.sites, *tables_of(inventory)) if takes_tables else inventory.sites
        return tuple(site for site in sites if self.smallest(site) <= self.largest(site))

    def structures(self, sites: Iterable[Site], sizes: Mapping[str, int]) -> dict[str, Structure]:
        """Return the structure of each site, by its name, for sizes by name."""
        return {site.name: self.structure(site, sizes[site.name]) for site in sites}

    def range(self, inventory: Inventory) -> Range:
        """Return the lowest and the highest target ratio that the family reaches on the model."""
        sites = self.sites(inventory)
        least = min((self.saving(site, self.largest(site)) for site in sites), default=0)
        most = sum(self.saving(site, self.smallest(site)) for site in sites)
        total = inventory.total_parameters
        return Range(total / (total - least), total / (total - most))


@dataclass(frozen=True)
class LowRankFamily(Family):
    """Low rank, sized by the rank; `pivoted`: without the redundancy of a plain factorisation."""

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
    """What the entries of a left Kronecker factor are multiplied with: a right factor of `height` × `width`."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def entries(self) -> int:
        return self.height * self.width


TILES = (Tile(4, 4), Tile(4, 16))
"""The tiles that matrices may take. At half the numbers, on matrices of a real model, 4 × 16 lowers the error of 4 × 4
by 5 to 15 %, and larger tiles lower it no further, while they take more products to compute. The wider of two tiles of
equal size is fitted faster."""

TABLE_TILES = (Tile(1, 16), Tile(1, 64))
"""The tiles that tables of tokens may take: the rows of tokens have nothing in common that a tile could share."""

LARGEST_SHARE = 3 / 4
"""No sum has more terms than this fraction of what represents every matrix: it would hardly be smaller."""


@dataclass(frozen=True)
class KroneckerFamily(Family):
    """Kronecker sums of any tile that fits. The size of a structure is its place among all of them, in the order of
    stored numbers. `permuted`: rows and columns are put in the order that suits the sum."""

    permuted: bool = True
    factors_embedding: bool = True

    def structure(self, site: Site, size: int) -> Kronecker:
        return self.sums(site)[size - 1]

    def smallest(self, site: Site) -> int:
        return 1

    def largest_inexact(self, site: Site) -> int:
        return len(self.sums(site))

    def tiles(self, site: Site) -> tuple[Tile, ...]:
        """Return the tiles that divide the site and are smaller than the left factor."""
        rows, columns = site.out_features, site.in_features
        offered = TABLE_TILES if site.block is None else TILES
        return tuple(
            tile
            for tile in offered
            if rows % tile.height == 0 and columns % tile.width == 0 and tile.entries**2 <= rows * columns
        )

    def sums(self, site: Site) -> tuple[Kronecker, ...]:
        """Return the sums that the site may take, the one that stores least first."""
        return _sums(self, site)

    def sum(self, site: Site, tile: Tile, terms: int) -> Kronecker:
        """Return the sum of so many terms with these tiles."""
        shapes = (site.out_features // tile.height, tile.height), (site.in_features // tile.width, tile.width)
        folded = self.permuted and site.free_outputs
        permute_out = self.permuted and tile.height > 1 and not folded
        return Kronecker(terms, *shapes, self.permuted, permute_out, folded)

    def most_terms(self, tile: Tile) -> int:
        """Return the greatest number of terms that are offered."""
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
    """Return the sites outside the blocks, with one row for each token: the embedding, and the output head where it has
    a matrix of its own."""
    return (inventory.embedding,) if inventory.head is None else (inventory.embedding, inventory.head)


def stored_parameters(inventory: Inventory, structures: Mapping[str, Structure]) -> int:
    """Return how many numbers the whole model stores under these structures, given by the names of their sites.

    A tied head that is given a structure adds what that stores. Raises MalformedStructure for one that does not fit.
    """
    sites = {site.name: site for site in (*inventory.sites, *tables_of(inventory))}
    total = inventory.total_parameters
    for name, structure in structures.items():
        site = sites.get(name, inventory.embedding)
        before = site.out_features * site.in_features if name in sites else 0
        total += structure.parameters(site.out_features, site.in_features) - before
    return total
