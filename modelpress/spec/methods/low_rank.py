"""Pivoted low rank with budgets by measured error: the best factorisation in our measurements.

Which ranks a matrix may take, and how the budget is divided among matrices, stands in `modelpress.spec.budgets`.
"""

from typing import ClassVar, Literal

from modelpress.spec.families import Family, LowRankFamily
from modelpress.spec.methods.base import MethodOptions, Need
from modelpress.spec.methods.factored import FactoredMethod


class LowRankOptions(MethodOptions):
    """Options of the method `low_rank`, which has none."""

    name: Literal["low_rank"] = "low_rank"


class LowRankMethod(FactoredMethod[LowRankOptions]):
    """Low rank without the redundancy of a plain factorisation (arXiv 2501.19090).

    All matrices take this structure: when each could choose by measured error at equal size, all chose it (see
    docs/decisions/001-pivoted-low-rank.md).
    """

    name: ClassVar[str] = "low_rank"
    title: ClassVar[str] = "low rank, with ranks by measured error"
    description: ClassVar[str] = (
        "Replaces matrices, the embedding included, by pivoted low-rank factors. Ranks follow the measured effect of "
        "an error in each matrix on the model's output, and each block is fitted to undo the error of the blocks "
        "before it."
    )
    paper: ClassVar[str | None] = "arXiv 2501.19090"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.SENSITIVITIES})
    family: ClassVar[Family] = LowRankFamily(factors_embedding=True, pivoted=True)
    options = LowRankOptions


LOW_RANK = LowRankMethod()
