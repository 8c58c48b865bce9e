"""How much of an evaluation text may be known."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers.stages.failures import StageFailed
from workers.stages.overlap import FILE, MOST, record_overlaps


def windows(seed: int, count: int = 40, length: int = 100) -> Tensor:
    return torch.randint(50_000, (count, length), generator=torch.Generator().manual_seed(seed))


def test_a_share_below_the_limit_is_written_down(tmp_path: Path) -> None:
    judged, learnt = windows(0), windows(1)
    learnt[3] = judged[5]
    record_overlaps(tmp_path, {"some": judged, "other": windows(2)}, [learnt])
    assert json.loads((tmp_path / FILE).read_text()) == {"some": pytest.approx(1 / 40), "other": 0.0}


def test_more_is_refused_with_the_dataset_and_the_share(tmp_path: Path) -> None:
    judged, distilled = windows(0), windows(1)
    copied = int(MOST * 40) + 1
    distilled[:copied] = judged[:copied]
    with pytest.raises(StageFailed, match=r"7\.5% of some") as refused:
        record_overlaps(tmp_path, {"some": judged}, [windows(2), distilled])
    assert refused.value.code == "evaluation_overlap"
