"""What a structure stores, counted exactly, and what budgets follow from it. Free of torch: the service asks it at
POST.

Every stored number counts: the index vector of a pivoted factorisation, the permutations of a Kronecker sum, an
output head of its own. Biases are stored before and after alike and are left to the total of the inventory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.compression.spec.catalog import TILE, Method, method
from workers.compression.spec.errors import CompressionError
from workers.compression.spec.inventory import Inventory, Site

RANK_FLOOR = 1 / 12
"""No site falls below this part of its full rank: what is left of it would no longer carry the signal."""

TABLE_RANK_FLOOR = 1 / 4
"""The embedding of a token has no second chance further down the network, nor has its logit: their floor is higher."""

TOLERANCE = 0.005
"""How far the stored parameters may lie from the target, as part of the target."""


class MalformedStructure(CompressionError):
    """A structure's description names an unknown kind, lacks a number or does not fit the matrix."""


@dataclass(frozen=True)
class Dense:
    """W as it is."""


@dataclass(frozen=True)
class LowRank:
    """W = second · first with first of rank × in and second of out × rank."""

    rank: int


@dataclass(frozen=True)
class Pivoted:
    """Low rank with an identity in one factor: the rank × rank freedom of a factorisation is not stored.

    The identity sits in `rank` pivot rows of W where out ≤ in, in as many pivot columns otherwise (arXiv 2501.19090).
    `folded` pivots are the first rows: the outputs stand in an order of their own, which those who read them follow.
    """

    rank: int
    folded: bool = False


@dataclass(frozen=True)
class Kronecker:
    """W = P_outᵀ (Σ_k A_k ⊗ B_k) P_in with A_k of m1 × n1, B_k of m2 × n2; out = (m1, m2), in = (n1, n2)."""

    terms: int
    out_shape: tuple[int, int]
    in_shape: tuple[int, int]
    permute_in: bool = False
    permute_out: bool = False


@dataclass(frozen=True)
class Sum:
    """Several structures whose outputs are added, such as Kronecker plus a low-rank residual."""

    parts: tuple["Structure", ...]


@dataclass(frozen=True)
class Halved:
    """An embedding whose width is halved so many times: E = ((A ⊗ b_t) P_t … ⊗ b_1) P_1 with every b of 1 × 2."""

    times: int


@dataclass(frozen=True)
class Tied:
    """An output head that reads the factored table of the embedding and stores nothing."""

    to: str


Structure = Dense | LowRank | Pivoted | Kronecker | Sum | Halved | Tied


def to_dict(structure: Structure) -> dict[str, Any]:
    """The JSON form, as it stands in the config.json of a factored checkpoint."""
    match structure:
        case Dense():
            return {"kind": "dense"}
        case LowRank(rank):
            return {"kind": "low_rank", "rank": rank}
        case Pivoted(rank, folded):
            return {"kind": "pivoted", "rank": rank, "folded": folded}
        case Kronecker(terms, out_shape, in_shape, permute_in, permute_out):
            shapes = {"out": list(out_shape), "in": list(in_shape)}
            return {"kind": "kronecker", "terms": terms, **shapes, "permute_in": permute_in, "permute_out": permute_out}
        case Sum(parts):
            return {"kind": "sum", "parts": [to_dict(part) for part in parts]}
        case Halved(times):
            return {"kind": "halved", "times": times}
        case Tied(to):
            return {"kind": "tied", "to": to}


def from_dict(form: Mapping[str, Any]) -> Structure:
    """The inverse of `to_dict`. Raises MalformedStructure."""
    try:
        return _READERS[form["kind"]](form)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedStructure(f"not the description of a structure: {dict(form)}") from error


def _read_kronecker(form: Mapping[str, Any]) -> Kronecker:
    (m1, m2), (n1, n2) = form["out"], form["in"]
    permuted = bool(form.get("permute_in", False)), bool(form.get("permute_out", False))
    return Kronecker(int(form["terms"]), (int(m1), int(m2)), (int(n1), int(n2)), *permuted)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Structure]] = {
    "dense": lambda form: Dense(),
    "low_rank": lambda form: LowRank(int(form["rank"])),
    "pivoted": lambda form: Pivoted(int(form["rank"]), bool(form.get("folded", False))),
    "kronecker": _read_kronecker,
    "sum": lambda form: Sum(tuple(from_dict(part) for part in form["parts"])),
    "halved": lambda form: Halved(int(form["times"])),
    "tied": lambda form: Tied(str(form["to"])),
}


def parameters(structure: Structure, out_features: int, in_features: int) -> int:
    """Numbers stored for an out × in matrix in this structure, indices included, bias excluded.

    Raises MalformedStructure where the structure does not fit the matrix.
    """
    match structure:
        case Dense():
            return out_features * in_features
        case LowRank(rank):
            _check(1 <= rank <= min(out_features, in_features), structure, out_features, in_features)
            return rank * (out_features + in_features)
        case Pivoted(rank, folded):
            _check(1 <= rank < min(out_features, in_features), structure, out_features, in_features)
            indices = 0 if folded else min(out_features, in_features)
            return rank * (out_features + in_features - rank) + indices
        case Kronecker(terms, (m1, m2), (n1, n2), permute_in, permute_out):
            fits = m1 * m2 == out_features and n1 * n2 == in_features
            _check(fits and 1 <= terms <= min(m1 * n1, m2 * n2), structure, out_features, in_features)
            indices = permute_in * in_features + permute_out * out_features
            return terms * (m1 * n1 + m2 * n2) + indices
        case Sum(parts):
            return sum(parameters(part, out_features, in_features) for part in parts)
        case Halved(times):
            _check(times > 0 and in_features % 2**times == 0, structure, out_features, in_features)
            indices = sum(in_features >> step for step in range(times))
            return out_features * (in_features >> times) + 2 * times + indices
        case Tied():
            return 0


def _check(fits: bool, structure: Structure, out_features: int, in_features: int) -> None:
    if not fits:
        raise MalformedStructure(f"{structure} does not fit a {out_features} by {in_features} matrix")


@dataclass(frozen=True)
class Range:
    """Ratios of stored parameters, before / after, that a method can reach on a model."""

    lowest: float
    highest: float

    def __contains__(self, ratio: float) -> bool:
        return self.lowest <= ratio <= self.highest


@dataclass(frozen=True)
class Plan:
    """Which structure each site gets; a site that is not named stays dense.

    `removed` is how many blocks go, the next one each time by `criterion`, which is None where none goes, and
    `intermediate_size` the hidden units of each MLP that then remain, or None for as many as before. `factors` is the
    method that makes what is left as small as planned; its structures follow once that is there to be measured.
    `absorption_tokens` are those of the distillations in which the removed blocks are taken up, all of them together.
    `compensation` says how far a site is fitted to make up for the sites before it: 0 not at all, 1 in full. A
    `data_free` plan fits the weights themselves, whatever flows through them. A tied output head that is named here is
    stored on its own.
    """

    method: str
    structures: Mapping[str, Structure]
    parameters_before: int
    parameters_after: int
    compensation: float = 0.5
    data_free: bool = False
    removed: int = 0
    intermediate_size: int | None = None
    factors: str | None = None
    absorption_tokens: int = 0
    key_value_heads: int | None = None
    criterion: str | None = None

    @property
    def ratio(self) -> float:
        return self.parameters_before / self.parameters_after

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "structures": {name: to_dict(structure) for name, structure in self.structures.items()},
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "compensation": self.compensation,
            "data_free": self.data_free,
            "removed": self.removed,
            "intermediate_size": self.intermediate_size,
            "factors": self.factors,
            "absorption_tokens": self.absorption_tokens,
            "key_value_heads": self.key_value_heads,
            "criterion": self.criterion,
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> "Plan":
        structures = {name: from_dict(structure) for name, structure in form["structures"].items()}
        return cls(
            str(form["method"]),
            structures,
            int(form["parameters_before"]),
            int(form["parameters_after"]),
            float(form["compensation"]),
            bool(form["data_free"]),
            int(form["removed"]),
            form["intermediate_size"],
            form["factors"],
            int(form["absorption_tokens"]),
            form["key_value_heads"],
            form["criterion"],
        )


class RatioOutOfRange(CompressionError):
    """The target lies outside the feasible range; the message says the range."""


def of_size(chosen: Method, site: Site, size: int) -> Structure:
    """The method's structure of a site; `size` is its rank, or the number of its Kronecker terms."""
    match chosen.structure:
        case "pivoted":
            return Pivoted(size, folded=site.free_outputs)
        case "low_rank":
            return LowRank(size)
        case "kronecker":
            return Kronecker(size, (site.out_features // TILE, TILE), (site.in_features // TILE, TILE))


def smallest_size(chosen: Method, site: Site) -> int:
    """The least that a site may be given."""
    if chosen.structure == "kronecker":
        return 1
    share = TABLE_RANK_FLOOR if site.block is None else RANK_FLOOR
    return max(1, round(min(site.out_features, site.in_features) * share))


def largest_size(chosen: Method, site: Site) -> int:
    """The largest size at which the structure still stores less than the matrix; 0 where none does."""
    return size_within(chosen, site, site.out_features * site.in_features - 1)


def size_within(chosen: Method, site: Site, budget: int) -> int:
    """The largest size that stores at most `budget` numbers; 0 where none does."""
    low, high = 0, _size_limit(chosen, site)
    while low < high:
        middle = (low + high + 1) // 2
        fits = parameters(of_size(chosen, site, middle), site.out_features, site.in_features) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _size_limit(chosen: Method, site: Site) -> int:
    """Where the structure would hold every matrix exactly, less one; 0 where it does not fit the site at all."""
    rows, columns = site.out_features, site.in_features
    if chosen.structure != "kronecker":
        return min(rows, columns) - 1
    if rows % TILE or columns % TILE:
        return 0
    return min(TILE * TILE, rows * columns // (TILE * TILE)) - 1


def compressible(inventory: Inventory, chosen: Method) -> tuple[Site, ...]:
    """The sites that the method may touch and that have something to give.

    Tables of another width than the blocks lie behind a projection, as in OPT-350m, and stay whole.
    """
    factors_tables = chosen.factors_embedding and inventory.embedding.in_features == inventory.hidden_size
    sites = (*inventory.sites, *tables_of(inventory)) if factors_tables else inventory.sites
    return tuple(site for site in sites if smallest_size(chosen, site) <= largest_size(chosen, site))


def tables_of(inventory: Inventory) -> tuple[Site, ...]:
    """The sites outside the blocks, with one row for each token: the embedding, and the output head where it has a
    matrix of its own."""
    return (inventory.embedding,) if inventory.head is None else (inventory.embedding, inventory.head)


def feasible_range(inventory: Inventory, method_name: str) -> Range:
    """The lowest and highest target ratio that the method reaches on the model. Raises UnknownMethod."""
    chosen = method(method_name)
    sites = compressible(inventory, chosen)
    least = min((_saving(chosen, site, largest_size(chosen, site)) for site in sites), default=0)
    most = sum(_saving(chosen, site, smallest_size(chosen, site)) for site in sites)
    total = inventory.total_parameters
    return Range(total / (total - least), total / (total - most))


def uniform_plan(inventory: Inventory, method_name: str, target_ratio: float) -> Plan:
    """The plan that leaves every site inside the blocks the same part of its parameters.

    Embedding and head stay whole while the blocks alone can reach the target, and pay the same part beyond that.
    The stored parameters meet the target within TOLERANCE. Raises RatioOutOfRange, UnknownMethod.
    """
    chosen = method(method_name)
    budget = budget_of(inventory, method_name, target_ratio)
    sites = compressible(inventory, chosen)
    blocks = tuple(site for site in sites if site.block is not None)
    if stored(inventory, sized(chosen, blocks, _shared_sizes(chosen, blocks, 0.0))) <= budget:
        sites = blocks
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = stored(inventory, sized(chosen, sites, _shared_sizes(chosen, sites, middle))) <= budget
        low, high = (middle, high) if fits else (low, middle)
    sizes = _spend_rest(inventory, chosen, sites, _shared_sizes(chosen, sites, low), budget)
    structures = sized(chosen, sites, sizes)
    return Plan(method_name, structures, inventory.total_parameters, stored(inventory, structures), chosen.compensation)


def sized(chosen: Method, sites: tuple[Site, ...], sizes: Mapping[str, int]) -> dict[str, Structure]:
    """The method's structure of the given size for each site."""
    return {site.name: of_size(chosen, site, sizes[site.name]) for site in sites}


def budget_of(inventory: Inventory, method_name: str, target_ratio: float) -> int:
    """The number of parameters that may be stored. Raises RatioOutOfRange, UnknownMethod."""
    feasible = feasible_range(inventory, method_name)
    if target_ratio not in feasible:
        raise RatioOutOfRange(
            f"{method_name} reaches ratios from {feasible.lowest:.3f} to {feasible.highest:.3f} on this model; "
            f"{target_ratio:g} was asked for"
        )
    return round(inventory.total_parameters / target_ratio)


def stored(inventory: Inventory, structures: Mapping[str, Structure]) -> int:
    """Parameters that the whole model stores under these structures; a tied head that gets one adds what it stores."""
    sites = {site.name: site for site in (*inventory.sites, *tables_of(inventory))}
    total = inventory.total_parameters
    for name, structure in structures.items():
        site = sites.get(name, inventory.embedding)
        before = site.out_features * site.in_features if name in sites else 0
        total += parameters(structure, site.out_features, site.in_features) - before
    return total


def _saving(chosen: Method, site: Site, size: int) -> int:
    rows, columns = site.out_features, site.in_features
    return rows * columns - parameters(of_size(chosen, site, size), rows, columns)


def _shared_sizes(chosen: Method, sites: tuple[Site, ...], share: float) -> dict[str, int]:
    """To every site the largest size that stores at most this share of it, within its floor and ceiling."""
    return {
        site.name: max(smallest_size(chosen, site), min(largest_size(chosen, site), size_within(chosen, site, budget)))
        for site in sites
        for budget in [int(share * site.out_features * site.in_features)]
    }


def _spend_rest(
    inventory: Inventory, chosen: Method, sites: tuple[Site, ...], sizes: dict[str, int], budget: int
) -> dict[str, int]:
    """Raises single sizes while the budget has room, so that rounding per site does not add up on a small model."""
    rest = budget - stored(inventory, sized(chosen, sites, sizes))
    raised = dict(sizes)
    for site in sites:
        size = raised[site.name]
        if size == largest_size(chosen, site):
            continue
        cost = _saving(chosen, site, size) - _saving(chosen, site, size + 1)
        if cost <= rest:
            raised[site.name] = size + 1
            rest -= cost
    return raised
