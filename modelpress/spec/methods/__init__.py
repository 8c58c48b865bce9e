"""The methods that a recipe may name. `REGISTERED` is the only list: to add a method, add a file and its entry here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modelpress.spec.methods.auto import AUTO
from modelpress.spec.methods.base import (
    Leaves,
    Measured,
    Method,
    MethodOptions,
    Need,
    PlanningMethod,
    SiteErrors,
)
from modelpress.spec.methods.errors import MethodDoesNotFit, OptionDoesNotFit
from modelpress.spec.methods.experts import EXPERTS
from modelpress.spec.methods.fusegpt import FUSEGPT
from modelpress.spec.methods.fusion import FUSION
from modelpress.spec.methods.kronecker import KRONECKER
from modelpress.spec.methods.low_rank import LOW_RANK
from modelpress.spec.methods.quantisation import QUANTISATION
from modelpress.spec.methods.svd import SVD
from modelpress.spec.methods.tqcompressor import TQCOMPRESSOR
from modelpress.spec.methods.width import WIDTH
from modelpress.spec.methods.width_low_rank import WIDTH_LOW_RANK

REGISTERED: tuple[Method[Any], ...] = (
    AUTO,
    QUANTISATION,
    LOW_RANK,
    WIDTH_LOW_RANK,
    WIDTH,
    FUSION,
    EXPERTS,
    KRONECKER,
    SVD,
    FUSEGPT,
    TQCOMPRESSOR,
)

METHODS: Mapping[str, Method[Any]] = MappingProxyType({method.name: method for method in REGISTERED})
"""Every method by name, the default first."""


def method_of(options: MethodOptions) -> Method[Any]:
    """Return the method that `options` belong to."""
    return METHODS[options.name]


def planner_of(options: MethodOptions) -> PlanningMethod[Any]:
    """Return the method that `options` belong to, as one that plans.

    Raises TypeError if the method only chooses among others, as `auto` does.
    """
    method = METHODS[options.name]
    if not isinstance(method, PlanningMethod):
        raise TypeError(f"the method {options.name} makes no plan of its own; use one of its candidates")
    return method


__all__ = [
    "METHODS",
    "Leaves",
    "Measured",
    "Method",
    "MethodDoesNotFit",
    "MethodOptions",
    "Need",
    "OptionDoesNotFit",
    "PlanningMethod",
    "SiteErrors",
    "method_of",
    "planner_of",
]
