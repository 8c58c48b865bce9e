"""Which site gets how many parameters: those whose loss the model's output would feel least give the most.

Every site offers a curve, the divergence of the model against the numbers stored. The plan takes the point of each
curve at which one more number buys the same everywhere (a Lagrange multiplier found by bisection), the embedding
included. The first and last blocks, queries or values are not treated alike or apart by rule: their curves say what
they need.

A factored matrix takes two products where a dense one takes one. So a site gives up its wholeness only for a saving
that is worth a second product, and ranks are such that a product runs at full speed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.math.sensitivity import Sensitivity
from workers.compression.spec.catalog import PRESETS, RESIZINGS, Method, method
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.plans import (
    Plan,
    budget_of,
    compressible,
    largest_size,
    of_size,
    parameters,
    smallest_size,
    stored,
    uniform_plan,
)
from workers.compression.spec.presets import preset_plan
from workers.compression.spec.sizes import resized_plan

SECOND_PRODUCT = 50_000
"""Starting a matrix product takes about as long as reading so many weights; see bench/RESULTS.md, "Speed"."""

SMALL_SITE = 1 / 4
"""At most this part of a site is asked for a second product, so that small models can be factored at all."""

RANK_STEP = 32
"""Ranks are multiples of this where the matrix is large: hardware multiplies whole tiles, and the fewer shapes a model
has, the fewer kernels take turns in the caches."""

STEPS_PER_SITE = 16
"""The least number of ranks to choose from; small matrices take smaller steps."""

TABLE_STEP = 8
"""The step for a table of tokens: its rows are so many that a larger one would miss the target."""


@dataclass(frozen=True)
class Curve:
    """The points that a site may take: `ranks` (the last one: dense), what each stores, and what each costs in nats.

    `fee` is what being factored costs at any rank, in stored numbers.
    """

    ranks: Tensor
    stored: Tensor
    divergence: Tensor
    fee: float = 0.0

    def cheapest(self, price: float) -> int:
        """The index of the point with the least divergence plus price times the numbers stored and the fee."""
        cost = self.divergence + price * self.stored
        cost[:-1] += price * self.fee
        return int(cost.argmin())


def measured_plan(
    inventory: Inventory,
    method_name: str,
    target_ratio: float,
    sensitivities: Mapping[str, Sensitivity],
    key_value_heads: int | None = None,
) -> Plan:
    """The plan that meets the target with the least divergence predicted.

    A method whose budget is uniform by definition gets `uniform_plan`; presets and those that resize have plans of
    their own, the latter with as many `key_value_heads` as are to be left. Raises RatioOutOfRange, UnknownMethod,
    PresetDoesNotFit, HeadsDoNotFit.
    """
    if method_name in RESIZINGS:
        return resized_plan(inventory, method_name, target_ratio, key_value_heads)
    if method_name in PRESETS:
        return preset_plan(inventory, method_name, target_ratio)
    chosen = method(method_name)
    if not chosen.measured:
        return uniform_plan(inventory, method_name, target_ratio)
    budget = budget_of(inventory, method_name, target_ratio)
    sites = {site.name: site for site in compressible(inventory, chosen)}
    curves = {name: curve(chosen, site, sensitivities[name].spectrum) for name, site in sites.items()}
    fixed = stored(inventory, {}) - sum(site.out_features * site.in_features for site in sites.values())
    picked = _within(curves, budget - fixed)
    structures = {
        name: of_size(chosen, sites[name], int(curves[name].ranks[index]))
        for name, index in picked.items()
        if index < len(curves[name].ranks) - 1
    }
    return Plan(method_name, structures, inventory.total_parameters, stored(inventory, structures), chosen.compensation)


def curve(chosen: Method, site: Site, spectrum: Tensor) -> Curve:
    """The curve of a site from the divergence that leaving out each singular value costs."""
    rows, columns = site.out_features, site.in_features
    ranks = offered_ranks(chosen, site)
    left_out = spectrum.flip(0).cumsum(0).flip(0)
    counts = [parameters(of_size(chosen, site, rank), rows, columns) for rank in ranks.tolist()]
    return Curve(
        torch.cat((ranks, torch.tensor([min(rows, columns)]))),
        torch.tensor([*counts, rows * columns], dtype=torch.float64),
        torch.cat((left_out[ranks], torch.zeros(1, dtype=torch.float64))),
        0.0 if site.block is None else min(SECOND_PRODUCT, SMALL_SITE * rows * columns),
    )


def offered_ranks(chosen: Method, site: Site) -> Tensor:
    """The ranks that the site may take, ascending: the ends of its range, and the multiples of its step between."""
    smallest, largest = smallest_size(chosen, site), largest_size(chosen, site)
    step = TABLE_STEP if site.block is None else RANK_STEP
    while step > 1 and step * STEPS_PER_SITE > min(site.out_features, site.in_features):
        step //= 2
    between = range(smallest + step - smallest % step, largest, step)
    return torch.tensor(sorted({smallest, *between, largest}))


def _within(curves: Mapping[str, Curve], budget: int) -> dict[str, int]:
    """The point of each curve, at the lowest common price at which all of them together keep to the budget."""
    low, high = 0.0, max(float(curve.divergence.max()) for curve in curves.values())
    picked = {name: curve.cheapest(high) for name, curve in curves.items()}
    for _ in range(80):
        price = (low + high) / 2
        trial = {name: curve.cheapest(price) for name, curve in curves.items()}
        if sum(float(curves[name].stored[index]) for name, index in trial.items()) <= budget:
            high, picked = price, trial
        else:
            low = price
    return _spend_rest(curves, picked, budget)


def _spend_rest(curves: Mapping[str, Curve], picked: Mapping[str, int], budget: int) -> dict[str, int]:
    """Steps up single curves while the budget has room: a curve that is not convex jumps past many points at one
    price.
    """
    raised = dict(picked)
    rest = budget - sum(float(curves[name].stored[index]) for name, index in raised.items())
    for name, points in curves.items():
        affordable = torch.nonzero(points.stored <= points.stored[raised[name]] + rest).flatten()
        best = int(affordable[points.divergence[affordable].argmin()])
        rest -= float(points.stored[best] - points.stored[raised[name]])
        raised[name] = best
    return raised
