"""The methods by name, the ways of resizing and the presets among them, and what sets them apart.

Free of torch: the service lists and checks them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from workers.compression.spec.errors import CompressionError


class UnknownMethod(CompressionError):
    """No method goes by this name; the message lists those that exist."""


TILE = 4
"""Rows and columns of the tiles of a `kronecker_sum`: with fewer a sum of terms can do little, with more it is slow to
fit."""


@dataclass(frozen=True)
class Method:
    """One way of making weights smaller, to any ratio within a range.

    `measured`: budgets follow what an error at a site does to the model's output, and so do the fits; otherwise every
    site keeps the same part. `compensation` is that of `spec.plans.Plan`.

    One structure serves all matrices of a method: where each could choose by its measured error at equal size, all
    chose pivoted low rank. At half the numbers, to give a fifth of them to Kronecker terms raises the output error by
    1 to 9 %, and the best permuted Kronecker sum by 5 to 134 % ("Which structure a matrix wants" in bench/RESULTS.md).
    """

    name: str
    description: str
    structure: Literal["pivoted", "low_rank", "kronecker"]
    factors_embedding: bool
    measured: bool
    compensation: float


_ALL = (
    Method(
        "kronecker",
        "the best of the factored family: pivoted low rank with budgets by what an error does to the model's output, "
        "the embedding included, fitted block by block to the original's activations",
        structure="pivoted",
        factors_embedding=True,
        measured=True,
        compensation=0.5,
    ),
    Method(
        "svd",
        "whitened low rank alone: two full factors for each matrix, the same budget everywhere",
        structure="low_rank",
        factors_embedding=False,
        measured=False,
        compensation=0.0,
    ),
    Method(
        "kronecker_sum",
        f"sums of Kronecker terms with tiles of {TILE} × {TILE}, fitted to the activations, the same budget everywhere",
        structure="kronecker",
        factors_embedding=False,
        measured=False,
        compensation=0.0,
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})


@dataclass(frozen=True)
class Preset:
    """A published configuration. It says what every matrix becomes, so it has one size for each model.

    `untied_head`: the output head keeps for itself the table that the original shares with its embedding.
    """

    name: str
    description: str
    untied_head: bool


_PUBLISHED = (
    Preset(
        "tqcompressor",
        "TQCompressedGPT-2 as released, for comparison: GPT-2 only; the embedding halved twice, the MLPs of odd blocks "
        "as four permuted Kronecker terms fitted without data, the output head whole and stored on its own",
        untied_head=True,
    ),
    Preset(
        "tqcompressor_tied",
        "the same with an output head that reads the halved embedding, which makes it as small as its published count",
        untied_head=False,
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _PUBLISHED})


@dataclass(frozen=True)
class Resizing:
    """A way to a smaller model of the same architecture: an ordinary checkpoint, which anything opens.

    `fuses`: blocks go first, as many as the target allows, and their neighbours take over what they did; without, and
    for what remains, the MLPs become narrower. `published`: blocks go as FuseGPT has it, one after another, each
    distilled into its group before the next is chosen. `criterion` says by what the next is chosen, where nothing else
    is asked for. `factors` names the method that factors what is left, which then
    bears half of the target; the result is no ordinary checkpoint any more.
    """

    name: str
    description: str
    fuses: bool
    published: bool = False
    factors: str | None = None
    criterion: str = "loss_after_removal"


_RESIZINGS = (
    Resizing(
        "fusion",
        "fewer blocks: those that the predictions miss least, the others refitted to make up for them, and on request "
        "distilled; narrower MLPs for the remainder; an ordinary checkpoint",
        fuses=True,
    ),
    Resizing(
        "fusegpt",
        "FuseGPT as published, for comparison: as `fusion`, but each block is distilled into its group with 20 passes "
        "over the calibration text before the next is chosen, on a CPU hours for a small model",
        fuses=True,
        published=True,
        criterion="macro_influence",
    ),
    Resizing(
        "width",
        "narrower MLPs: the hidden units whose loss the others can best make up for, and a down projection fitted "
        "anew; an ordinary checkpoint",
        fuses=False,
    ),
    Resizing(
        "hybrid",
        "narrower MLPs for one half of the target, and what is left factored as by `kronecker` for the other",
        fuses=False,
        factors="kronecker",
    ),
)

AUTO = "auto"
"""Not a method of its own: it tries the candidates and takes the one that does best on text that they did not see."""

CANDIDATES = ("kronecker", "hybrid", "width", "fusion")

RESIZINGS: Mapping[str, Resizing] = MappingProxyType({resizing.name: resizing for resizing in _RESIZINGS})


def names() -> tuple[str, ...]:
    """What a recipe may name."""
    return (AUTO, *METHODS, *RESIZINGS, *PRESETS)


def method(name: str) -> Method:
    """The method of this name. Raises UnknownMethod, also for those that factor nothing and for presets."""
    try:
        return METHODS[name]
    except KeyError:
        raise UnknownMethod(f"unknown method {name!r}; send one of {', '.join(names())}") from None


def resizing(name: str) -> Resizing:
    """The way of resizing of this name. Raises UnknownMethod."""
    try:
        return RESIZINGS[name]
    except KeyError:
        raise UnknownMethod(f"unknown method {name!r}; send one of {', '.join(names())}") from None


def is_measured(name: str) -> bool:
    """Whether the method needs to know what an error at each site does to the model's output."""
    return name in METHODS and METHODS[name].measured


def goes_in_phases(name: str) -> bool:
    """Whether all that the method does is to factor one matrix after another, so that a training may come between."""
    return name in METHODS or name in PRESETS


def leaves_factors(name: str) -> bool:
    """Whether what the method leaves is sure to hold factors. `auto` may choose a method that leaves none."""
    return name in METHODS or name in PRESETS or (name in RESIZINGS and RESIZINGS[name].factors is not None)
