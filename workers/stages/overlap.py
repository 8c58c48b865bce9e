"""Refuse to measure on text that the result was also made from, whatever the dataset is called."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from modelpress.contract.codes import FailureCode
from workers.compression.evaluation.overlap import PASSAGE, shared
from workers.messages import AttemptFailed
from workers.stages import names
from workers.stages.context import Context

FILE = "overlaps.json"
MOST = 0.05
"""Largest acceptable share. Two halves of one corpus share no passage of PASSAGE tokens, the documentation of one
library repeats about 1% of itself, and a copied text shares everything."""


def record_overlaps(directory: Path, evaluations: Mapping[str, Tensor], made_from: Sequence[Tensor]) -> None:
    """Store, for each evaluation dataset (token ids [windows, length]), the share of its tokens found in `made_from`.

    Raises:
        AttemptFailed: the share of a dataset exceeds `MOST`.
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
    """Return, for each evaluation dataset, the share of its tokens that the result was also made from."""
    found: dict[str, float] = json.loads((context.results[names.CALIBRATE] / FILE).read_text())
    return found
