"""Choose the code of every matrix for a budget of bytes, from the measured cost of each. Torch-free.

    costs = {"model.layers.0.mlp.up_proj": {"q8_0": 1e-5, "iq4_nl": 2e-3}, …}
    codes = choose_codes(inventory, FORMATS["gguf"], Limits(), costs, Budget(10**8))      # {site: code's name}

Matrices that a format's engines multiply as one share a code: queries, keys and values of a block, and the layers that
enter its MLP. One more byte then lowers the model's divergence equally everywhere (`budgets.allocate`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelpress.spec.architectures import architecture_named
from modelpress.spec.budgets import Curve, Point, allocate
from modelpress.spec.formats import Format
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.precision import Limits
from modelpress.spec.sizes import PLAIN_BYTES, choices, matrices, plain_bytes

Costs = Mapping[str, Mapping[str, float]]
"""The rise of the model's divergence, in nats per token, by a matrix's name and the name of its code."""


@dataclass(frozen=True)
class Budget:
    """The bytes that the weights may take.

    Attributes:
        bytes: bytes of all weights together, rounded or not.
        number_bytes: bytes of a number that is not rounded.
    """

    bytes: int
    number_bytes: int = PLAIN_BYTES


def choose_codes(inventory: Inventory, form: Format, limits: Limits, costs: Costs, budget: Budget) -> dict[str, str]:
    """Return {site: code's name} with the least total divergence; matrices that are not rounded are left out.

    Args:
        inventory: that of the model whose matrices are rounded.
        form: the format that stores them.
        limits: the most bits that weights may keep.
        costs: the cost of every code that `choices` offers for a matrix.
        budget: the bytes of the weights, at the most. If even the smallest codes exceed it, they are returned.
    """
    curves: dict[str, Curve[str]] = {}
    members: dict[str, Sequence[Site]] = {}
    for group in fused(inventory) if form.joins else ((site,) for site in matrices(inventory)):
        offered = [choices(form, inventory, site, limits) for site in group]
        shared = [code for code in offered[0] if all(code in others for others in offered)]
        if not shared:
            continue
        points: list[Point[str]] = [
            Point(
                code.name,
                sum(code.bytes(site.out_features, site.in_features) for site in group),
                sum(costs[site.name][code.name] for site in group),
            )
            for code in shared
        ]
        if limits.of(group[0]) == "auto":
            points.append(Point(None, sum(plain_bytes(site, budget.number_bytes) for site in group), 0.0))
        curves[group[0].name] = Curve(tuple(sorted(points, key=lambda point: point.stored)))
        members[group[0].name] = group
    rounded = sum(plain_bytes(site, budget.number_bytes) for group in members.values() for site in group)
    untouched = inventory.total_parameters * budget.number_bytes - rounded
    found = allocate(curves, budget.bytes - untouched) if curves else {}
    return {site.name: code for name, code in found.items() for site in members[name]}


def fused(inventory: Inventory) -> Iterator[Sequence[Site]]:
    """Yield every matrix that may be rounded, together with those that engines may multiply with it as one."""
    architecture = architecture_named(inventory.model_type)
    heads = architecture.attention.heads
    together = (architecture.mlp.entering, () if heads is None else (heads.queries, heads.keys, heads.values))
    groups: dict[tuple[int | None, object], list[Site]] = {}
    for site in matrices(inventory):
        names = next((names for names in together if site.name.endswith(tuple(f".{name}" for name in names))), None)
        groups.setdefault((site.block, names or site.name), []).append(site)
    yield from groups.values()
