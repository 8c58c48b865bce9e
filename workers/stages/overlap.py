"""Refuse to measure on text that the result was made from, whatever name it came by."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from app.contract.codes import FailureCode
from workers.compression.evaluation.overlap import PASSAGE, shared
from workers.messages import AttemptFailed
from workers.stages import names
from workers.stages.context import Context

FILE = "overlaps.json"
MOST = 0.05
"""The largest share of a text's tokens that may be known. The halves of one corpus have nothing of that length in
common, and one library's documentation repeats a percent of itself; a copied text has all."""


def record_overlaps(directory: Path, evaluations: Mapping[str, Tensor], made_from: Sequence[Tensor]) -> None:
    """Writes down, for each dataset of token ids [windows, length], the share of its tokens that is in the others.

    Raises AttemptFailed for a dataset of which more than MOST is.
    """
    learnt = [windows.flatten() for windows in made_from]
    found = {dataset: shared(windows.flatten(), learnt) for dataset, windows in evaluations.items()}
    for dataset, share in found.items():
        if share > MOST:
            raise AttemptFailed(
                FailureCode.EVALUATION_OVERLAP,
                f"{share:.1%} of {dataset} is in passages of {PASSAGE} tokens or more that the text of the calibration "
                "or the distillation has too; evaluate on other text",
            )
    (directory / FILE).write_text(json.dumps(found))


def overlaps_of(context: Context) -> dict[str, float]:
    found: dict[str, float] = json.loads((context.results[names.CALIBRATE] / FILE).read_text())
    return found
