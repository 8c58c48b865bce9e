"""Plain low rank, fitted to the activations: the usual baseline."""

from typing import ClassVar, Literal

from modelpress.spec.families import Family, LowRankFamily
from modelpress.spec.methods.base import MethodOptions
from modelpress.spec.methods.factored import FactoredMethod


class SvdOptions(MethodOptions):
    """Options of the method `svd`, which has none."""

    name: Literal["svd"] = "svd"


class SvdMethod(FactoredMethod[SvdOptions]):
    """A method that replaces each matrix of the blocks by two full factors, as SVD-LLM does (arXiv 2403.07378)."""

    name: ClassVar[str] = "svd"
    title: ClassVar[str] = "plain low rank, for comparison"
    description: ClassVar[str] = (
        "Replaces each matrix of the blocks by two low-rank factors, fitted to the activations, with the same fraction "
        "of parameters everywhere: the usual baseline."
    )
    paper: ClassVar[str | None] = "arXiv 2403.07378"
    family: ClassVar[Family] = LowRankFamily(factors_embedding=False, pivoted=False)
    compensation: ClassVar[float] = 0.0
    options = SvdOptions


SVD = SvdMethod()
