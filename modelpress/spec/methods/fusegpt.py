"""FuseGPT as published (arXiv 2411.14507), for comparison."""

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.criteria import CRITERION_HELP, Criterion
from modelpress.spec.methods.base import MethodOptions
from modelpress.spec.methods.depth import DepthMethod
from modelpress.spec.steps import Fuse, Step


class FuseGptOptions(MethodOptions):
    """Options of the method `fusegpt`: how blocks are chosen and distilled."""

    name: Literal["fusegpt"] = "fusegpt"
    criterion: Criterion = Field("macro_influence", description=CRITERION_HELP)
    tokens: int | None = Field(
        None,
        ge=16,
        le=100_000_000_000,
        description="training budget, in tokens of the calibration text, for distilling all removed blocks into their "
        "groups; null takes 20 passes over the text for each removed block, as published",
    )


class FuseGptMethod(DepthMethod[FuseGptOptions]):
    """FuseGPT (arXiv 2411.14507): each block is distilled into seven others before the next one is chosen."""

    name: ClassVar[str] = "fusegpt"
    title: ClassVar[str] = "FuseGPT as published, for comparison"
    description: ClassVar[str] = (
        "Removes blocks as FuseGPT does: each is distilled into seven others, with 20 passes over the calibration "
        "text, before the next one is chosen. On a CPU this takes hours for a small model; `tokens` limits it."
    )
    paper: ClassVar[str | None] = "arXiv 2411.14507"
    options = FuseGptOptions

    def removal(self, count: int, options: FuseGptOptions) -> tuple[Step, ...]:
        return (Fuse(count=count, criterion=options.criterion, tokens=options.tokens),)


FUSEGPT = FuseGptMethod()
