"""Remove blocks and refit the others to make up for them. The result has the original's architecture."""

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.criteria import CRITERION_HELP, Criterion
from modelpress.spec.methods.base import MethodOptions
from modelpress.spec.methods.depth import DepthMethod
from modelpress.spec.steps import Absorb, Refit, Remove, Step


class FusionOptions(MethodOptions):
    """Options of the method `fusion`: how blocks are chosen and distilled."""

    name: Literal["fusion"] = "fusion"
    criterion: Criterion = Field("loss_after_removal", description=CRITERION_HELP)
    tokens: int | None = Field(
        None,
        ge=16,
        le=100_000_000_000,
        description="training budget, in tokens of the calibration text, for distilling all removed blocks into the "
        "blocks around them; null distils none",
    )


class FusionMethod(DepthMethod[FusionOptions]):
    """A method that removes the blocks that matter least to the predictions and refits the others in closed form."""

    name: ClassVar[str] = "fusion"
    title: ClassVar[str] = "fewer blocks"
    description: ClassVar[str] = (
        "Removes the blocks that matter least to the predictions, one after another, refits the remaining blocks to "
        "the original's hidden states, and narrows the MLPs for the rest of the target. Leaves an ordinary checkpoint."
    )
    paper: ClassVar[str | None] = "after arXiv 2411.14507"
    options = FusionOptions

    def removal(self, count: int, options: FusionOptions) -> tuple[Step, ...]:
        steps = (Remove(count=count, criterion=options.criterion), Refit())
        return steps if options.tokens is None else (*steps, Absorb(tokens=options.tokens))


FUSION = FusionMethod()
