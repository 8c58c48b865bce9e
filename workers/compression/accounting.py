"""What a structure stores, counted exactly, and what budgets follow from it. Free of torch: the service asks it at
POST.

Every stored number counts: the index vector of a pivoted factorisation, the permutations of a Kronecker sum, an
output head of its own. Biases are stored before and after alike and are left to the total of the inventory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.compression.architectures import Inventory, Site
from workers.compression.catalog import Method, method
from workers.compression.errors import CompressionError

RANK_FLOOR = 1 / 12
"""No site falls below this part of its full rank: what is left of it would no longer carry the signal."""

EMBEDDING_RANK_FLOOR = 1 / 4
"""The embedding of a token has no second chance further down the network, so its floor is higher."""

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
    """

    rank: int


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
        case Pivoted(rank):
            return {"kind": "pivoted", "rank": rank}
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
    "pivoted": lambda form: Pivoted(int(form["rank"])),
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
        case Pivoted(rank):
            _check(1 <= rank < min(out_features, in_features), structure, out_features, in_features)
            return rank * (out_features + in_features - rank) + min(out_features, in_features)
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

    `compensation` says how far a site is fitted to make up for the sites before it: 0 not at all, 1 in full.
    """

    method: str
    structures: Mapping[str, Structure]
    parameters_before: int
    parameters_after: int
    compensation: float = 0.5

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
        )


class RatioOutOfRange(CompressionError):
    """The target lies outside the feasible range; the message says the range."""


def of_rank(chosen: Method, rank: int) -> Structure:
    """A low-rank structure as the method stores it."""
    return Pivoted(rank) if chosen.pivoted else LowRank(rank)


def floor_rank(site: Site) -> int:
    """The lowest rank that a site may be given."""
    share = EMBEDDING_RANK_FLOOR if site.layout == "embedding" else RANK_FLOOR
    return max(1, round(min(site.out_features, site.in_features) * share))


def highest_rank(chosen: Method, site: Site) -> int:
    """The highest rank at which the structure still stores less than the matrix; 0 where none does."""
    return rank_within(chosen, site, site.out_features * site.in_features - 1)


def rank_within(chosen: Method, site: Site, budget: int) -> int:
    """The highest rank that stores at most `budget` numbers; 0 where none does."""
    low, high = 0, min(site.out_features, site.in_features) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = parameters(of_rank(chosen, middle), site.out_features, site.in_features) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def compressible(inventory: Inventory, chosen: Method) -> tuple[Site, ...]:
    """The sites that the method may touch and that have something to give."""
    tables = (inventory.embedding,) if chosen.factors_embedding else ()
    sites = (*inventory.sites, *tables)
    return tuple(site for site in sites if floor_rank(site) <= highest_rank(chosen, site))


def feasible_range(inventory: Inventory, method_name: str) -> Range:
    """The lowest and highest target ratio that the method reaches on the model. Raises UnknownMethod."""
    chosen = method(method_name)
    sites = compressible(inventory, chosen)
    least = min((_saving(chosen, site, highest_rank(chosen, site)) for site in sites), default=0)
    most = sum(_saving(chosen, site, floor_rank(site)) for site in sites)
    total = inventory.total_parameters
    return Range(total / (total - least), total / (total - most))


def uniform_plan(inventory: Inventory, method_name: str, target_ratio: float) -> Plan:
    """The plan that leaves every site inside the blocks the same part of its parameters.

    The embedding stays whole while the blocks alone can reach the target, and pays the same part beyond that.
    The stored parameters meet the target within TOLERANCE. Raises RatioOutOfRange, UnknownMethod.
    """
    chosen = method(method_name)
    budget = budget_of(inventory, method_name, target_ratio)
    sites = compressible(inventory, chosen)
    blocks = tuple(site for site in sites if site.layout != "embedding")
    if stored(inventory, ranked(chosen, _shared_ranks(chosen, blocks, 0.0))) <= budget:
        sites = blocks
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = stored(inventory, ranked(chosen, _shared_ranks(chosen, sites, middle))) <= budget
        low, high = (middle, high) if fits else (low, middle)
    ranks = _spend_rest(inventory, chosen, sites, _shared_ranks(chosen, sites, low), budget)
    structures = ranked(chosen, ranks)
    return Plan(method_name, structures, inventory.total_parameters, stored(inventory, structures), chosen.compensation)


def ranked(chosen: Method, ranks: Mapping[str, int]) -> dict[str, Structure]:
    """The method's structure of the given rank for each site."""
    return {name: of_rank(chosen, rank) for name, rank in ranks.items()}


def budget_of(inventory: Inventory, method_name: str, target_ratio: float) -> int:
    """The number of parameters that may be stored. Raises RatioOutOfRange, UnknownMethod."""
    feasible = feasible_range(inventory, method_name)
    if target_ratio not in feasible:
        raise RatioOutOfRange(
            f"{method_name} reaches ratios from {feasible.lowest:.3f} to {feasible.highest:.3f} on this model; "
            f"{target_ratio:g} was asked for"
        )
    return int(inventory.total_parameters / target_ratio)


def stored(inventory: Inventory, structures: Mapping[str, Structure]) -> int:
    """Parameters that the whole model stores under these structures."""
    sites = {site.name: site for site in (*inventory.sites, inventory.embedding)}
    saved = sum(
        sites[name].out_features * sites[name].in_features
        - parameters(structure, sites[name].out_features, sites[name].in_features)
        for name, structure in structures.items()
        if not isinstance(structure, Tied)
    )
    return inventory.total_parameters - saved


def _saving(chosen: Method, site: Site, rank: int) -> int:
    rows, columns = site.out_features, site.in_features
    return rows * columns - parameters(of_rank(chosen, rank), rows, columns)


def _shared_ranks(chosen: Method, sites: tuple[Site, ...], share: float) -> dict[str, int]:
    """To every site the highest rank that stores at most this share of it, within its floor and ceiling."""
    return {
        site.name: max(floor_rank(site), min(highest_rank(chosen, site), rank_within(chosen, site, budget)))
        for site in sites
        for budget in [int(share * site.out_features * site.in_features)]
    }


def _spend_rest(
    inventory: Inventory, chosen: Method, sites: tuple[Site, ...], ranks: dict[str, int], budget: int
) -> dict[str, int]:
    """Raises single ranks while the budget has room, so that rounding per site does not add up on a small model."""
    rest = budget - stored(inventory, ranked(chosen, ranks))
    raised = dict(ranks)
    for site in sites:
        rank = raised[site.name]
        cost = (
            _saving(chosen, site, rank) - _saving(chosen, site, rank + 1)
            if rank < highest_rank(chosen, site)
            else rest + 1
        )
        if cost <= rest:
            raised[site.name] = rank + 1
            rest -= cost
    return raised
