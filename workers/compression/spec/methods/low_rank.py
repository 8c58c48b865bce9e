"""Pivoted low rank with budgets by measured error: the best of the factorisations that were measured."""

from typing import ClassVar, Literal

from workers.compression.spec.families import Family, LowRankFamily
from workers.compression.spec.methods.base import MethodOptions, Need
from workers.compression.spec.methods.factored import FactoredMethod


class LowRankOptions(MethodOptions):
    """The method `low_rank` has no options."""

    name: Literal["low_rank"] = "low_rank"


class LowRankMethod(FactoredMethod[LowRankOptions]):
    """Low rank without the redundancy of a factorisation (arXiv 2501.19090).

    One structure serves all matrices: where each could choose by its measured error at equal size, all chose pivoted
    low rank (docs/decisions/001-pivoted-low-rank.md).
    """

    name: ClassVar[str] = "low_rank"
    title: ClassVar[str] = "low rank where the output feels it least"
    description: ClassVar[str] = (
        "Replaces matrices by pivoted low-rank factors, the embedding included. Ranks follow what an error in each "
        "matrix does to the model's output, and each block is fitted to undo the error of the blocks before it."
    )
    paper: ClassVar[str | None] = "arXiv 2501.19090"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.SENSITIVITIES})
    family: ClassVar[Family] = LowRankFamily(factors_embedding=True, pivoted=True)
    options = LowRankOptions


LOW_RANK = LowRankMethod()
