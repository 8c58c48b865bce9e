"""Which site gets how many parameters: the same fraction everywhere, or what each one's measured error asks for.

Where errors are measured, every site offers a curve, the divergence of the model against the numbers stored. The plan
takes the point of each curve at which one more number buys the same everywhere (a Lagrange multiplier found by
bisection), the embedding included. The first and last blocks, queries or values are not treated alike or apart by rule:
their curves say what they need.

A factored matrix takes two products where a dense one takes one. So a site gives up its wholeness only for a saving
that is worth a second product, and ranks are such that a product runs at full speed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from workers.compression.spec.families import Family, stored_parameters
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.structures import Structure

SECOND_PRODUCT = 50_000
"""Starting a matrix product takes as long as reading about this many weights; see
docs/decisions/003-fee-for-a-second-product.md."""

SMALL_SITE = 1 / 4
"""At most this fraction of a site is asked for a second product, so that small models can be factored at all."""

RANK_STEP = 32
"""Ranks are multiples of this where the matrix is large: hardware multiplies whole tiles, and the fewer shapes a model
has, the fewer kernels take turns in the caches."""

STEPS_PER_SITE = 16
"""The least number of ranks to choose from; small matrices take smaller steps."""

TABLE_STEP = 8
"""The step for a table of tokens: its rows are so many that a larger one would miss the target."""


@dataclass(frozen=True)
class Point:
    """One structure that a site may take, None for the matrix as it is; `stored` counts its numbers, `divergence` is
    what it costs in nats per token."""

    structure: Structure | None
    stored: int
    divergence: float


@dataclass(frozen=True)
class Curve:
    """The points that a site may take, the smallest first and the matrix as it is last. `fee` is what any other
    structure costs besides, in stored numbers."""

    points: tuple[Point, ...]
    fee: float = 0.0

    def cheapest(self, price: float) -> int:
        """Return the index of the point with the least divergence plus `price` times the numbers stored and the fee."""

        def cost(index: int) -> float:
            point = self.points[index]
            fee = 0.0 if point.structure is None else price * self.fee
            return point.divergence + price * point.stored + fee

        return min(range(len(self.points)), key=cost)


def rank_curve(family: Family, site: Site, spectrum: Sequence[float]) -> Curve:
    """Return the curve of a site. `spectrum`: the nats that leaving out each singular value costs, descending."""
    whole = site.out_features * site.in_features
    left_out = tuple(accumulate(reversed(spectrum)))[::-1]
    points = [
        Point(family.structure(site, rank), family.stored(site, rank), left_out[rank])
        for rank in offered_ranks(family, site)
    ]
    return Curve((*points, Point(None, whole, 0.0)), second_product_fee(site))


def second_product_fee(site: Site) -> float:
    """Return what a second product costs at the site, in stored numbers; a table's factors are read where it was."""
    return 0.0 if site.block is None else min(SECOND_PRODUCT, SMALL_SITE * site.out_features * site.in_features)


def offered_ranks(family: Family, site: Site) -> list[int]:
    """Return the ranks that the site may take, ascending: both ends of its range, multiples of its step between."""
    smallest, largest = family.smallest(site), family.largest(site)
    step = TABLE_STEP if site.block is None else RANK_STEP
    while step > 1 and step * STEPS_PER_SITE > min(site.out_features, site.in_features):
        step //= 2
    between = range(smallest + step - smallest % step, largest, step)
    return sorted({smallest, *between, largest})


def allocate(curves: Mapping[str, Curve], budget: int) -> dict[str, Structure]:
    """Return the structures, by site, that keep within `budget` stored numbers at the least divergence in all.

    A site whose matrix stays as it is is left out.
    """
    low, high = 0.0, max(point.divergence for curve in curves.values() for point in curve.points)
    picked = {name: curve.cheapest(high) for name, curve in curves.items()}
    for _ in range(80):
        price = (low + high) / 2
        trial = {name: curve.cheapest(price) for name, curve in curves.items()}
        if _stored(curves, trial) <= budget:
            high, picked = price, trial
        else:
            low = price
    found = ((name, curves[name].points[index].structure) for name, index in _raised(curves, picked, budget).items())
    return {name: structure for name, structure in found if structure is not None}


def uniform_structures(inventory: Inventory, family: Family, budget: int) -> dict[str, Structure]:
    """Return structures that leave every site inside the blocks the same fraction of its parameters, such that the
    whole model stores `budget` numbers.

    Embedding and head stay whole while the blocks alone can reach the budget, and pay the same fraction beyond that.
    """
    sites = family.sites(inventory)
    blocks = tuple(site for site in sites if site.block is not None)
    if stored_parameters(inventory, family.structures(blocks, _shared_sizes(family, blocks, 0.0))) <= budget:
        sites = blocks
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        sizes = _shared_sizes(family, sites, middle)
        fits = stored_parameters(inventory, family.structures(sites, sizes)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    sizes = _shared_sizes(family, sites, low)
    rest = budget - stored_parameters(inventory, family.structures(sites, sizes))
    return family.structures(sites, _spend(family, sites, sizes, rest))


def _stored(curves: Mapping[str, Curve], picked: Mapping[str, int]) -> int:
    return sum(curves[name].points[index].stored for name, index in picked.items())


def _raised(curves: Mapping[str, Curve], picked: Mapping[str, int], budget: int) -> dict[str, int]:
    """Step up single curves while the budget has room: one that is not convex jumps past many points at one price."""
    raised = dict(picked)
    rest = budget - _stored(curves, raised)
    for name, curve in curves.items():
        stored = curve.points[raised[name]].stored
        affordable = [index for index, point in enumerate(curve.points) if point.stored <= stored + rest]
        best = min(affordable, key=lambda index: curve.points[index].divergence)
        rest -= curve.points[best].stored - stored
        raised[name] = best
    return raised


def _shared_sizes(family: Family, sites: tuple[Site, ...], share: float) -> dict[str, int]:
    """For every site, the largest size that stores at most this share of it, within its floor and ceiling."""
    return {
        site.name: max(family.smallest(site), min(family.largest(site), family.largest_within(site, budget)))
        for site in sites
        for budget in [int(share * site.out_features * site.in_features)]
    }


def _spend(family: Family, sites: tuple[Site, ...], sizes: Mapping[str, int], rest: int) -> dict[str, int]:
    """Raise single sizes while the budget has room, so that rounding per site does not add up on a small model."""
    raised = dict(sizes)
    for site in sites:
        size = raised[site.name]
        if size == family.largest(site):
            continue
        cost = family.saving(site, size) - family.saving(site, size + 1)
        if cost <= rest:
            raised[site.name] = size + 1
            rest -= cost
    return raised
