"""Plan fewer attention heads. Heads are removed in groups: a key/value head with the query heads that share it.

Without grouped-query attention, each query head forms a group with its own key/value head. Torch-free, because the
service checks recipes with it.

Promise: only numbers of heads are offered that the architecture's own config accepts, so the result opens without code
of ours. The width of a head does not change.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from modelpress.spec.architectures import architecture_named
from modelpress.spec.architectures.architecture import HeadMatrices
from modelpress.spec.errors import CompressionError
from modelpress.spec.inventory import Inventory, Site


class HeadsDoNotFit(CompressionError):
    """The model cannot have this number of key/value heads; the message lists the numbers it can have."""

    code = "method_does_not_fit"


@dataclass(frozen=True)
class Heads:
    """The number of query heads and key/value heads, and the head width `size`; the same in every block."""

    queries: int
    key_values: int
    size: int

    @property
    def group_width(self) -> int:
        """The width of a group's query heads together, which is also its share of the output projection's inputs."""
        return self.queries // self.key_values * self.size

    def with_key_values(self, count: int) -> "Heads":
        """Return heads with `count` key/value heads and as many query heads for each as before."""
        return replace(self, queries=self.queries // self.key_values * count, key_values=count)


def head_matrices(inventory: Inventory) -> HeadMatrices:
    """Return the names of the projections that hold the heads.

    Raises HeadsDoNotFit if the architecture's config cannot state fewer heads.
    """
    matrices = architecture_named(inventory.model_type).attention.heads
    if matrices is None or inventory.head_size is None:
        raise HeadsDoNotFit(
            f"the config of this {inventory.model_type} cannot state fewer attention heads, so all must stay; leave "
            "key_value_heads out"
        )
    return matrices


def heads_of(inventory: Inventory) -> Heads:
    """Return the heads of the model's blocks, computed from the shapes of their projections.

    Raises:
        HeadsDoNotFit: if the architecture's config cannot state fewer heads.
        ValueError: if blocks differ in their number of heads.
    """
    matrices, size = head_matrices(inventory), cast("int", inventory.head_size)
    queries = _only({site.out_features // size for site in _named(inventory, matrices.queries)})
    key_values = _only({site.out_features // size for site in _named(inventory, matrices.keys)})
    return Heads(queries, key_values, size)


def stated_heads(inventory: Inventory) -> Heads | None:
    """Return the heads of the model's blocks, or None if the config cannot state fewer heads.

    Raises ValueError if blocks differ in their number of heads.
    """
    return None if inventory.head_size is None else heads_of(inventory)


def feasible_key_value_heads(inventory: Inventory) -> tuple[int, ...]:
    """Return the numbers of key/value heads, below the present one, that the model can have, ascending.

    Raises HeadsDoNotFit if there are none.
    """
    matrices, heads = head_matrices(inventory), heads_of(inventory)
    feasible = tuple(
        count
        for count in range(1, heads.key_values)
        if not matrices.divides_width or inventory.hidden_size % heads.with_key_values(count).queries == 0
    )
    if not feasible:
        raise HeadsDoNotFit(f"none of the model's {heads.key_values} key/value heads can be removed")
    return feasible


def regrouped(inventory: Inventory, key_value_heads: int) -> Inventory:
    """Return the inventory with this number of key/value heads, and as many query heads for each as before.

    Raises HeadsDoNotFit if the model cannot have this number.
    """
    feasible = feasible_key_value_heads(inventory)
    if key_value_heads not in feasible:
        raise HeadsDoNotFit(f"the model can have {_listed(feasible)} key/value heads; {key_value_heads} were asked for")
    matrices, before = head_matrices(inventory), heads_of(inventory)
    heads = before.with_key_values(key_value_heads)
    rows = {
        matrices.queries: heads.queries * heads.size,
        matrices.keys: heads.key_values * heads.size,
        matrices.values: heads.key_values * heads.size,
    }
    leaving = architecture_named(inventory.model_type).attention.leaving
    in_blocks = list(inventory.block_parameters)
    sites = []
    for site in inventory.sites:
        narrower = _narrower(site, leaving, rows, heads.queries * heads.size)
        sites.append(narrower)
        if site.block is not None:
            in_blocks[site.block] += _stored(narrower) - _stored(site)
    gone = sum(inventory.block_parameters) - sum(in_blocks)
    return replace(
        inventory,
        sites=tuple(sites),
        total_parameters=inventory.total_parameters - gone,
        block_parameters=tuple(in_blocks),
    )


def _narrower(site: Site, leaving: str, rows: dict[str, int], columns: int) -> Site:
    """Return the site with fewer columns if it is the output projection, or fewer rows if `rows` lists its name."""
    if site.name.endswith(f".{leaving}"):
        return replace(site, in_features=columns)
    left = next((count for name, count in rows.items() if site.name.endswith(f".{name}")), site.out_features)
    return replace(site, out_features=left)


def _stored(site: Site) -> int:
    """Return the parameters of a site, bias included."""
    return site.out_features * (site.in_features + site.bias)


def _named(inventory: Inventory, name: str) -> list[Site]:
    return [site for site in inventory.sites if site.name.endswith(f".{name}")]


def _only(counts: set[int]) -> int:
    """Return the only element. Raises ValueError if there are several."""
    if len(counts) != 1:
        raise ValueError(f"the blocks do not have equally many attention heads: {sorted(counts)}")
    return counts.pop()


def _listed(numbers: Iterable[int]) -> str:
    """Return the numbers as text: '1, 2 or 4'."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
