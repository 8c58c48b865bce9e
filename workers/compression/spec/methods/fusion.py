"""Fewer blocks, the others refitted to make up for them: an ordinary checkpoint of the original's architecture."""

from typing import ClassVar, Literal

from pydantic import Field

from workers.compression.spec.methods.base import MethodOptions
from workers.compression.spec.methods.depth import DepthMethod
from workers.compression.spec.steps import Absorb, Criterion, Refit, Remove, Step

CRITERION_HELP = (
    "by what the next block to go is chosen: `macro_influence`, how far the final hidden state turns without it; "
    "`block_influence`, how far the block turns what enters it; `loss_after_removal`, how much worse the calibration "
    "text is predicted without it; `trial_fusion`, what a refit of the block before it leaves of its macro influence"
)


class FusionOptions(MethodOptions):
    """How blocks are chosen and taken up."""

    name: Literal["fusion"] = "fusion"
    criterion: Criterion = Field("loss_after_removal", description=CRITERION_HELP)
    tokens: int | None = Field(
        None,
        ge=16,
        le=100_000_000_000,
        description="tokens of the calibration text over which the blocks around each removed one are distilled to "
        "take it up, for all of them together; null distils none",
    )


class FusionMethod(DepthMethod[FusionOptions]):
    """Removes the blocks that the predictions miss least and refits the others in closed form."""

    name: ClassVar[str] = "fusion"
    title: ClassVar[str] = "fewer blocks"
    description: ClassVar[str] = (
        "Removes the blocks that the predictions miss least, one after another, refits those that stay to the "
        "original's hidden states, and narrows the MLPs for the remainder. Leaves an ordinary checkpoint."
    )
    paper: ClassVar[str | None] = "after arXiv 2411.14507"
    options = FusionOptions

    def removal(self, count: int, options: FusionOptions) -> tuple[Step, ...]:
        steps = (Remove(count=count, criterion=options.criterion), Refit())
        return steps if options.tokens is None else (*steps, Absorb(tokens=options.tokens))


FUSION = FusionMethod()
