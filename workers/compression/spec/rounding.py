"""Choose the code of every matrix for a budget of bytes, from the measured cost of each. Torch-free.

    costs = {"model.layers.0.mlp.up_proj": {"q8_0": 1e-5, "iq4_nl": 2e-3}, …}
    codes = choose_codes(inventory, FORMATS["gguf"], "auto", costs, budget)      # {site: code's name}

Matrices that engines multiply as one share a code: queries, keys and values of a block, and the layers that enter its
MLP. One more byte then lowers the model's divergence equally everywhere (`budgets.allocate`).
"""

from collections.abc import Iterator, Mapping, Sequence

from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.budgets import Curve, Point, allocate
from workers.compression.spec.formats import Format
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.precision import Precision
from workers.compression.spec.sizes import bytes_before, choices, matrices, plain_bytes

Costs = Mapping[str, Mapping[str, float]]
"""The rise of the model's divergence, in nats per token, by a matrix's name and the name of its code."""


def choose_codes(inventory: Inventory, form: Format, precision: Precision, costs: Costs, budget: int) -> dict[str, str]:
    """Return {site: code's name} with the least total divergence; matrices that keep 16 bits are left out.

    Args:
        inventory: that of the model whose matrices are rounded.
        form: the format that stores them.
        precision: the most bits that a weight may keep.
        costs: the cost of every code that `choices` offers for a matrix.
        budget: bytes of all weights together, rounded or not, at the most. If even the smallest codes exceed it, they
            are returned.
    """
    curves: dict[str, Curve[str]] = {}
    members: dict[str, Sequence[Site]] = {}
    for group in fused(inventory):
        offered = [choices(form, inventory, site, precision) for site in group]
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
        if precision == "auto":
            points.append(Point(None, sum(map(plain_bytes, group)), 0.0))
        curves[group[0].name] = Curve(tuple(sorted(points, key=lambda point: point.stored)))
        members[group[0].name] = group
    untouched = bytes_before(inventory) - sum(plain_bytes(site) for group in members.values() for site in group)
    found = allocate(curves, budget - untouched) if curves else {}
    return {site.name: code for name, code in found.items() for site in members[name]}


def fused(inventory: Inventory) -> Iterator[Sequence[Site]]:
    """Yield every matrix that may be rounded, together with those that engines multiply with it as one."""
    architecture = ARCHITECTURES[inventory.model_type]
    heads = architecture.attention.heads
    together = (architecture.mlp.entering, () if heads is None else (heads.queries, heads.keys, heads.values))
    groups: dict[tuple[int | None, object], list[Site]] = {}
    for site in matrices(inventory):
        names = next((names for names in together if site.name.endswith(tuple(f".{name}" for name in names))), None)
        groups.setdefault((site.block, names or site.name), []).append(site)
    yield from groups.values()
