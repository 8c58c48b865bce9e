"""Plain whitened low rank: the usual baseline."""

from typing import ClassVar, Literal

from workers.compression.spec.families import Family, LowRankFamily
from workers.compression.spec.methods.base import MethodOptions
from workers.compression.spec.methods.factored import FactoredMethod


class SvdOptions(MethodOptions):
    """The method `svd` has no options."""

    name: Literal["svd"] = "svd"


class SvdMethod(FactoredMethod[SvdOptions]):
    """Two full factors for each matrix of the blocks, as in SVD-LLM (arXiv 2403.07378)."""

    name: ClassVar[str] = "svd"
    title: ClassVar[str] = "plain low rank, for comparison"
    description: ClassVar[str] = (
        "Replaces the matrices of the blocks by two low-rank factors, fitted to the activations, with the same budget "
        "everywhere: the usual baseline."
    )
    paper: ClassVar[str | None] = "arXiv 2403.07378"
    family: ClassVar[Family] = LowRankFamily(factors_embedding=False, pivoted=False)
    compensation: ClassVar[float] = 0.0
    options = SvdOptions


SVD = SvdMethod()
