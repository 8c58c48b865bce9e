"""The compact structures that may replace a weight matrix: what each one stores, counted exactly, and its JSON form.

Every stored number counts: the index vector of a pivoted factorisation, the permutations of a Kronecker sum, an output
head of its own. Biases are stored before and after alike and are left to the total of the inventory. The layers that
compute with these structures are in `workers.compression.structures`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

from pydantic import PlainSerializer, PlainValidator

from workers.compression.spec.errors import CompressionError


class MalformedStructure(CompressionError):
    """A structure's description names an unknown kind, lacks a number or does not fit the matrix."""

    code = "internal_error"


class Structure(ABC):
    """What a weight matrix W of out × in becomes. `kind` names it in the config.json of a package."""

    kind: ClassVar[str]

    @abstractmethod
    def parameters(self, out_features: int, in_features: int) -> int:
        """Return how many numbers the structure stores for an out × in matrix, indices included, bias excluded.

        Raises MalformedStructure where the structure does not fit the matrix.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as it stands in the config.json of a package."""
        return {"kind": self.kind, **self._fields()}

    def _fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def read(cls, form: Mapping[str, Any]) -> Self:
        """Return the structure of this kind that `form` describes."""
        return cls(**{name: value for name, value in form.items() if name != "kind"})

    def _require(self, fits: bool, out_features: int, in_features: int) -> None:
        if not fits:
            raise MalformedStructure(f"{self} does not fit a {out_features} by {in_features} matrix")


@dataclass(frozen=True)
class Dense(Structure):
    """W as it is: for a tied output head that keeps the whole table for itself."""

    kind: ClassVar[str] = "dense"

    def parameters(self, out_features: int, in_features: int) -> int:
        return out_features * in_features


@dataclass(frozen=True)
class LowRank(Structure):
    """W = second · first with first of rank × in and second of out × rank."""

    kind: ClassVar[str] = "low_rank"

    rank: int

    def parameters(self, out_features: int, in_features: int) -> int:
        self._require(1 <= self.rank <= min(out_features, in_features), out_features, in_features)
        return self.rank * (out_features + in_features)

    def _fields(self) -> dict[str, Any]:
        return {"rank": self.rank}


@dataclass(frozen=True)
class Pivoted(Structure):
    """Low rank with an identity in one factor, so that the rank × rank freedom of a factorisation is not stored.

    The identity sits in `rank` pivot rows of W where out ≤ in, in as many pivot columns otherwise (arXiv 2501.19090).
    `folded` pivots are the first rows: the outputs stand in an order of their own, which the modules that read them
    follow.
    """

    kind: ClassVar[str] = "pivoted"

    rank: int
    folded: bool = False

    def parameters(self, out_features: int, in_features: int) -> int:
        self._require(1 <= self.rank < min(out_features, in_features), out_features, in_features)
        indices = 0 if self.folded else min(out_features, in_features)
        return self.rank * (out_features + in_features - self.rank) + indices

    def _fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Kronecker(Structure):
    """W = P_outᵀ (Σ_k A_k ⊗ B_k) P_in with A_k of m1 × n1 and B_k of m2 × n2, where out = m1·m2 and in = n1·n2.

    `out_shape` is (m1, m2) and `in_shape` is (n1, n2). A permutation that is not stored is the identity, but for
    `folded` outputs: these stand in the order of the sum, which the modules that read them follow.
    """

    kind: ClassVar[str] = "kronecker"

    terms: int
    out_shape: tuple[int, int]
    in_shape: tuple[int, int]
    permute_in: bool = False
    permute_out: bool = False
    folded: bool = False

    def parameters(self, out_features: int, in_features: int) -> int:
        (m1, m2), (n1, n2) = self.out_shape, self.in_shape
        fits = m1 * m2 == out_features and n1 * n2 == in_features and not (self.folded and self.permute_out)
        self._require(fits and 1 <= self.terms <= min(m1 * n1, m2 * n2), out_features, in_features)
        indices = self.permute_in * in_features + self.permute_out * out_features
        return self.terms * (m1 * n1 + m2 * n2) + indices

    def _fields(self) -> dict[str, Any]:
        shapes = {"out": list(self.out_shape), "in": list(self.in_shape)}
        orders = {"permute_in": self.permute_in, "permute_out": self.permute_out, "folded": self.folded}
        return {"terms": self.terms, **shapes, **orders}

    @classmethod
    def read(cls, form: Mapping[str, Any]) -> Self:
        (m1, m2), (n1, n2) = form["out"], form["in"]
        orders = (bool(form.get(name, False)) for name in ("permute_in", "permute_out", "folded"))
        return cls(int(form["terms"]), (int(m1), int(m2)), (int(n1), int(n2)), *orders)


@dataclass(frozen=True)
class Halved(Structure):
    """An embedding whose width is halved `times` times: E = ((A ⊗ b_t) P_t … ⊗ b_1) P_1 with every b of 1 × 2."""

    kind: ClassVar[str] = "halved"

    times: int

    def parameters(self, out_features: int, in_features: int) -> int:
        self._require(self.times > 0 and in_features % 2**self.times == 0, out_features, in_features)
        indices = sum(in_features >> step for step in range(self.times))
        return out_features * (in_features >> self.times) + 2 * self.times + indices

    def _fields(self) -> dict[str, Any]:
        return {"times": self.times}


@dataclass(frozen=True)
class Tied(Structure):
    """An output head that reads the factored table of the embedding named `to` and stores nothing."""

    kind: ClassVar[str] = "tied"

    to: str

    def parameters(self, out_features: int, in_features: int) -> int:
        return 0

    def _fields(self) -> dict[str, Any]:
        return {"to": self.to}


STRUCTURES: Mapping[str, type[Structure]] = MappingProxyType(
    {each.kind: each for each in (Dense, LowRank, Pivoted, Kronecker, Halved, Tied)}
)
"""Every structure by its kind."""


def structure_from_dict(form: Any) -> Structure:
    """Return the structure that a JSON form describes: the inverse of `Structure.to_dict`.

    Raises MalformedStructure.
    """
    if isinstance(form, Structure):
        return form
    try:
        return STRUCTURES[form["kind"]].read(form)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedStructure(f"not the description of a structure: {form}") from error


AnyStructure = Annotated[
    Structure,
    PlainValidator(structure_from_dict, json_schema_input_type=dict[str, Any]),
    PlainSerializer(Structure.to_dict, return_type=dict[str, Any]),
]
"""A structure as a field of a pydantic model."""
