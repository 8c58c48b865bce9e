"""Fewer attention heads, by whole groups: a key/value head with the query heads that share it.

Torch-free: the service asks it at POST. Where no heads share, each is a group of its own.

Promise: only numbers are offered that the architecture's own config takes, so nothing of ours is needed to open the
result. The size of a head stays.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.architectures.architecture import HeadMatrices
from workers.compression.spec.errors import CompressionError
from workers.compression.spec.inventory import Inventory, Site


class HeadsDoNotFit(CompressionError):
    """The model cannot have so many key/value heads; the message says which numbers it can."""

    code = "method_does_not_fit"


@dataclass(frozen=True)
class Heads:
    """The attention heads of every block: so many that ask, so many that are asked, of `size` numbers each."""

    queries: int
    key_values: int
    size: int

    @property
    def group_width(self) -> int:
        """The numbers that the queries of a group have, and what they read for the last projection."""
        return self.queries // self.key_values * self.size

    def with_key_values(self, count: int) -> "Heads":
        return replace(self, queries=self.queries // self.key_values * count, key_values=count)


def head_matrices(inventory: Inventory) -> HeadMatrices:
    """Where the blocks keep their heads. Raises HeadsDoNotFit where there cannot be fewer of them."""
    matrices = ARCHITECTURES[inventory.model_type].attention.heads
    if matrices is None or inventory.head_size is None:
        raise HeadsDoNotFit(
            f"the config of this {inventory.model_type} cannot say that it has fewer attention heads; all must stay"
        )
    return matrices


def heads_of(inventory: Inventory) -> Heads:
    """The heads that the matrices have room for. Raises HeadsDoNotFit where attention cannot be narrowed, ValueError
    where some blocks have more of them than others."""
    matrices, size = head_matrices(inventory), cast("int", inventory.head_size)
    queries = _only({site.out_features // size for site in _named(inventory, matrices.queries)})
    key_values = _only({site.out_features // size for site in _named(inventory, matrices.keys)})
    return Heads(queries, key_values, size)


def stated_heads(inventory: Inventory) -> Heads | None:
    """The same, or None where the config has nothing to say of them."""
    return None if inventory.head_size is None else heads_of(inventory)


def feasible_key_value_heads(inventory: Inventory) -> tuple[int, ...]:
    """The numbers of key/value heads below the present one, ascending. Raises HeadsDoNotFit where there are none."""
    matrices, heads = head_matrices(inventory), heads_of(inventory)
    feasible = tuple(
        count
        for count in range(1, heads.key_values)
        if not matrices.divides_width or inventory.hidden_size % heads.with_key_values(count).queries == 0
    )
    if not feasible:
        raise HeadsDoNotFit(f"none of the model's {heads.key_values} key/value heads can go")
    return feasible


def regrouped(inventory: Inventory, key_value_heads: int) -> Inventory:
    """The inventory with that many key/value heads and as many query heads for each as before. Raises HeadsDoNotFit."""
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
    leaving = ARCHITECTURES[inventory.model_type].attention.leaving
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
    if site.name.endswith(f".{leaving}"):
        return replace(site, in_features=columns)
    left = next((count for name, count in rows.items() if site.name.endswith(f".{name}")), site.out_features)
    return replace(site, out_features=left)


def _stored(site: Site) -> int:
    return site.out_features * (site.in_features + site.bias)


def _named(inventory: Inventory, name: str) -> list[Site]:
    return [site for site in inventory.sites if site.name.endswith(f".{name}")]


def _only(counts: set[int]) -> int:
    if len(counts) != 1:
        raise ValueError(f"the blocks do not have equally many attention heads: {sorted(counts)}")
    return counts.pop()


def _listed(numbers: Iterable[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
