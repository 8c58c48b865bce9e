"""Divide a budget of parameters or bytes among the sites: equally, or by measured errors.

If errors are measured, every site has a curve of the model's divergence over the stored parameters or bytes. The budget
is divided so that one more parameter lowers the divergence equally at every site, the embedding included (a
Lagrange multiplier found by bisection). No rule favours certain blocks or projections.

A factored matrix takes two matrix products, a dense one takes one. A site is therefore factored only if the saving is
worth a second product. The ranks on offer by measured error (`offered_ranks`) are multiples that hardware multiplies at
full speed, and the ends of the range that the family of structures allows; an equal division (`uniform_structures`)
takes any rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from modelpress.spec.families import Family, stored_parameters
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.structures import Structure

Form = TypeVar("Form")

SECOND_PRODUCT = 50_000
"""Fee for a second matrix product, in stored parameters: to start a product takes as long as to read about this many
weights. See docs/decisions/003-fee-for-a-second-product.md."""

SMALL_SITE = 1 / 4
"""The fee is at most this fraction of a site's parameters, so that small models can be factored at all."""

RANK_STEP = 32
"""Ranks of large matrices are multiples of this. Hardware multiplies whole tiles, and a model with fewer shapes uses
fewer kernels."""

STEPS_PER_SITE = 16
"""The step between ranks is halved until a full rank has at least so many steps, whatever `RANK_STEP` is. A matrix with
a shorter side below 512 takes steps below 32, one below 1024 steps below 64."""

TABLE_STEP = 8
"""The step of ranks for embedding and output head. They have so many rows that a larger step would miss the target."""


@dataclass(frozen=True)
class Point(Generic[Form]):
    """One form that a site may take.

    Attributes:
        form: the structure or code; None keeps the matrix as it is.
        stored: its size, in the unit of the budget: parameters or bytes.
        divergence: its cost to the model, in nats per token.
    """

    form: Form | None
    stored: int
    divergence: float


@dataclass(frozen=True)
class Curve(Generic[Form]):
    """The forms that a site may take.

    Attributes:
        points: the forms by their size, ascending.
        fee: additional cost of every form but None, in the unit of the sizes.
    """

    points: tuple[Point[Form], ...]
    fee: float = 0.0

    def cheapest(self, price: float) -> int:
        """Return the index of the point with the least total cost: divergence + `price` · (size + fee).

        `price` is in nats per token and unit of size.
        """

        def cost(index: int) -> float:
            point = self.points[index]
            fee = 0.0 if point.form is None else price * self.fee
            return point.divergence + price * point.stored + fee

        return min(range(len(self.points)), key=cost)


def rank_curve(family: Family, site: Site, spectrum: Sequence[float]) -> Curve[Structure]:
    """Return the curve of a site over the ranks that `offered_ranks` lists.

    `spectrum` is the cost of leaving out each singular value, in nats per token, descending.
    """
    whole = site.out_features * site.in_features
    left_out = tuple(accumulate(reversed(spectrum)))[::-1]
    points: list[Point[Structure]] = [
        Point(family.structure(site, rank), family.stored(site, rank), left_out[rank])
        for rank in offered_ranks(family, site)
    ]
    return Curve((*points, Point(None, whole, 0.0)), second_product_fee(site))


def second_product_fee(site: Site) -> float:
    """Return the fee for a second matrix product at the site, in stored parameters; 0 for embedding and output head."""
    return 0.0 if site.block is None else min(SECOND_PRODUCT, SMALL_SITE * site.out_features * site.in_features)


def offered_ranks(family: Family, site: Site) -> list[int]:
    """Return the ranks that the site may take, ascending: both ends of its range and multiples of its step between."""
    smallest, largest = family.smallest(site), family.largest(site)
    step = TABLE_STEP if site.block is None else RANK_STEP
    while step > 1 and step * STEPS_PER_SITE > min(site.out_features, site.in_features):
        step //= 2
    between = range(smallest + step - smallest % step, largest, step)
    return sorted({smallest, *between, largest})


def allocate(curves: Mapping[str, Curve[Form]], budget: int) -> dict[str, Form]:
    """Return {site: form} with the least total divergence whose sizes add up to at most `budget`.

    Sites that keep their matrix are not in the result. `curves` has an entry for each site by name. If even the
    smallest forms exceed the budget, they are returned.
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
    found = ((name, curves[name].points[index].form) for name, index in _raised(curves, picked, budget).items())
    return {name: form for name, form in found if form is not None}


def uniform_structures(inventory: Inventory, family: Family, budget: int) -> dict[str, Structure]:
    """Return {site: structure} with the same fraction of parameters at every site, for a model of `budget` parameters.

    Embedding and output head stay whole if the blocks alone can reach the budget; otherwise they are reduced by the
    same fraction.
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


def _stored(curves: Mapping[str, Curve[Form]], picked: Mapping[str, int]) -> int:
    """Return the size of all picked points together."""
    return sum(curves[name].points[index].stored for name, index in picked.items())


def _raised(curves: Mapping[str, Curve[Form]], picked: Mapping[str, int], budget: int) -> dict[str, int]:
    """Move single sites to larger points while the budget has room.

    The bisection leaves room because a curve that is not convex skips many of its points.
    """
    raised = dict(picked)
    rest = budget - _stored(curves, raised)
    for name, curve in curves.items() if rest > 0 else ():
        stored = curve.points[raised[name]].stored
        affordable = [index for index, point in enumerate(curve.points) if point.stored <= stored + rest]
        best = min(affordable, key=lambda index: curve.points[index].divergence)
        rest -= curve.points[best].stored - stored
        raised[name] = best
    return raised


def _shared_sizes(family: Family, sites: tuple[Site, ...], share: float) -> dict[str, int]:
    """Return, per site, the largest size that stores at most `share` of its parameters, within the family's limits."""
    return {
        site.name: max(family.smallest(site), min(family.largest(site), family.largest_within(site, budget)))
        for site in sites
        for budget in [int(share * site.out_features * site.in_features)]
    }


def _spend(family: Family, sites: tuple[Site, ...], sizes: Mapping[str, int], rest: int) -> dict[str, int]:
    """Increase single sizes while `rest` parameters allow, so that rounding at each site does not add up."""
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
