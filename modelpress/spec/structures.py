"""The compact structures that may replace a weight matrix, with exact parameter counts and JSON forms.

Every stored number counts: the index vector of a pivoted factorisation, the permutations of a Kronecker sum, an output
head that is no longer tied. Biases are not counted here, because compression does not change their number. The layers
that compute with these structures are in `workers.compression.structures`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

from pydantic import PlainSerializer, PlainValidator

from modelpress.spec.errors import CompressionError


class MalformedStructure(CompressionError):
    """The description of a structure has an unknown kind, lacks a field or does not fit its matrix."""

    code = "internal_error"


class Structure(ABC):
    """A structure that replaces a weight matrix W [out, in]. `kind` names it in the config.json of a package."""

    kind: ClassVar[str]

    @abstractmethod
    def parameters(self, out_features: int, in_features: int) -> int:
        """Return the number of parameters for a matrix [out, in], indices included, bias excluded.

        Raises MalformedStructure if the structure does not fit the matrix.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that the config.json of a package has."""
        return {"kind": self.kind, **self._fields()}

    def _fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def read(cls, form: Mapping[str, Any]) -> Self:
        """Return the structure of this kind that `form` describes."""
        return cls(**{name: value for name, value in form.items() if name != "kind"})

    def _require(self, fits: bool, out_features: int, in_features: int) -> None:
        """Raise MalformedStructure unless the structure `fits`."""
        if not fits:
            raise MalformedStructure(f"{self} does not fit a {out_features} by {in_features} matrix")


@dataclass(frozen=True)
class Dense(Structure):
    """The whole matrix W, stored on its own: for an output head that was tied and keeps the original table."""

    kind: ClassVar[str] = "dense"

    def parameters(self, out_features: int, in_features: int) -> int:
        return out_features * in_features


@dataclass(frozen=True)
class LowRank(Structure):
    """W = second · first with first [rank, in] and second [out, rank]."""

    kind: ClassVar[str] = "low_rank"

    rank: int

    def parameters(self, out_features: int, in_features: int) -> int:
        self._require(1 <= self.rank <= min(out_features, in_features), out_features, in_features)
        return self.rank * (out_features + in_features)

    def _fields(self) -> dict[str, Any]:
        return {"rank": self.rank}


@dataclass(frozen=True)
class Pivoted(Structure):
    """Low rank with an identity in one factor, which saves the rank² parameters that a factorisation is free to choose.

    The identity is in `rank` pivot rows of W if out ≤ in, and in `rank` pivot columns otherwise (arXiv 2501.19090).
    `folded`: the outputs are permuted so that the pivots are the first rows, and no index vector is stored; the modules
    that read the outputs are permuted accordingly.
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
    """W = P_outᵀ (Σ_k A_k ⊗ B_k) P_in with A_k [m1, n1] and B_k [m2, n2], where out = m1·m2 and in = n1·n2.

    Attributes:
        terms: number of Kronecker products in the sum.
        out_shape: (m1, m2).
        in_shape: (n1, n2).
        permute_in: whether P_in is stored; otherwise it is the identity.
        permute_out: whether P_out is stored; otherwise it is the identity.
        folded: the outputs are in the order of the sum; the modules that read them are permuted accordingly.
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
    """An embedding whose width is halved `times` times: E = ((A ⊗ b_t) P_t … ⊗ b_1) P_1 with every b [1, 2]."""

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
    """An output head that shares the factors of the embedding named `to` and stores nothing itself."""

    kind: ClassVar[str] = "tied"

    to: str

    def parameters(self, out_features: int, in_features: int) -> int:
        return 0

    def _fields(self) -> dict[str, Any]:
        return {"to": self.to}


STRUCTURES: Mapping[str, type[Structure]] = MappingProxyType(
    {each.kind: each for each in (Dense, LowRank, Pivoted, Kronecker, Halved, Tied)}
)
"""Every structure class by its kind."""


def structure_from_dict(form: Any) -> Structure:
    """Return the structure with the given JSON form: the inverse of `Structure.to_dict`.

    A structure is returned as it is. Raises MalformedStructure if the form does not describe a structure.
    """
    if isinstance(form, Structure):
        return form
    try:
        return STRUCTURES[form["kind"]].read(form)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedStructure(f"this is not the JSON form of a structure: {form}") from error


AnyStructure = Annotated[
    Structure,
    PlainValidator(structure_from_dict, json_schema_input_type=dict[str, Any]),
    PlainSerializer(Structure.to_dict, return_type=dict[str, Any]),
]
"""A structure as a field of a pydantic model."""
