"""The criteria by which the next block to remove is chosen.

To add one, name it in `Criterion` and `CRITERIA` here, and its function in `SCORERS` of
`workers.compression.steps.influence`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Criterion = Literal["macro_influence", "block_influence", "loss_after_removal", "trial_fusion"]


@dataclass(frozen=True)
class Description:
    """A criterion in words.

    Attributes:
        score: what the score of a block is, as documentation and recipe say it.
        axis: the same, short enough for the axis of a picture.
        is_expensive: whether a shortlist of blocks is scored in place of every one.
    """

    score: str
    axis: str
    is_expensive: bool = False


CRITERIA: Mapping[Criterion, Description] = MappingProxyType(
    {
        "macro_influence": Description(
            "the cosine distance between the final hidden states with and without the block",
            "cosine distance of final states",
        ),
        "block_influence": Description(
            "the cosine distance between the block's input and output", "cosine distance of input and output"
        ),
        "loss_after_removal": Description(
            "the rise of the loss on the calibration text without the block",
            "rise of the loss (nats per token)",
            is_expensive=True,
        ),
        "trial_fusion": Description(
            "the macro influence that is left once the block before it has been refitted",
            "cosine distance of final states after a refit",
            is_expensive=True,
        ),
    }
)

CRITERION_HELP = "score by which the next block to remove is chosen: " + "; ".join(
    f"`{name}`, {criterion.score}" for name, criterion in CRITERIA.items()
)
"""What recipe and command line say about the choice."""
