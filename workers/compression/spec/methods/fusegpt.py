"""FuseGPT as published (arXiv 2411.14507), for comparison."""

from typing import ClassVar, Literal

from pydantic import Field

from workers.compression.spec.methods.base import MethodOptions
from workers.compression.spec.methods.depth import DepthMethod
from workers.compression.spec.methods.fusion import CRITERION_HELP
from workers.compression.spec.steps import Criterion, Fuse, Step


class FuseGptOptions(MethodOptions):
    """How blocks are chosen and taken up."""

    name: Literal["fusegpt"] = "fusegpt"
    criterion: Criterion = Field("macro_influence", description=CRITERION_HELP)
    tokens: int | None = Field(
        None,
        ge=16,
        le=100_000_000_000,
        description="tokens of the calibration text over which the removed blocks are distilled into their groups, for "
        "all of them together; null takes 20 passes over the text for each removed block, as published",
    )


class FuseGptMethod(DepthMethod[FuseGptOptions]):
    """Distils each block into seven others before it chooses the next one."""

    name: ClassVar[str] = "fusegpt"
    title: ClassVar[str] = "fewer blocks as published, for comparison"
    description: ClassVar[str] = (
        "Removes blocks as FuseGPT does: each is distilled into seven others, with 20 passes over the calibration "
        "text, before the next one is chosen. On a CPU that takes hours for a small model; `tokens` bounds it."
    )
    paper: ClassVar[str | None] = "arXiv 2411.14507"
    options = FuseGptOptions

    def removal(self, count: int, options: FuseGptOptions) -> tuple[Step, ...]:
        return (Fuse(count=count, criterion=options.criterion, tokens=options.tokens),)


FUSEGPT = FuseGptMethod()
