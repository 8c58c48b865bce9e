"""How much of an evaluation text may be known."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.sources.python_docs import evaluation_documents, training_documents
from workers.messages import AttemptFailed
from workers.stages.overlap import FILE, MOST, record_overlaps


def windows(seed: int, count: int = 40, length: int = 100) -> Tensor:
    return torch.randint(50_000, (count, length), generator=torch.Generator().manual_seed(seed))


def test_a_share_below_the_limit_is_written_down(tmp_path: Path) -> None:
    judged, learnt = windows(0), windows(1)
    learnt[3] = judged[5]
    record_overlaps(tmp_path, {"some": judged, "other": windows(2)}, [learnt])
    assert json.loads((tmp_path / FILE).read_text()) == {"some": pytest.approx(1 / 40), "other": 0.0}


def test_the_text_that_comes_along_can_be_measured_on(tmp_path: Path) -> None:
    numbers: defaultdict[str, int] = defaultdict(lambda: len(numbers))

    def tokens(documents: list[str]) -> Tensor:
        words = (word for document in documents for word in re.findall(r"\w+|[^\w\s]+", document))
        return torch.tensor([[numbers[word] for word in words]])

    record_overlaps(tmp_path, {"test": tokens(evaluation_documents())}, [tokens(training_documents())])
    assert json.loads((tmp_path / FILE).read_text())["test"] < MOST / 2


def test_more_is_refused_with_the_dataset_and_the_share(tmp_path: Path) -> None:
    judged, distilled = windows(0), windows(1)
    copied = int(MOST * 40) + 1
    distilled[:copied] = judged[:copied]
    with pytest.raises(AttemptFailed, match=r"7\.5% of some") as refused:
        record_overlaps(tmp_path, {"some": judged}, [windows(2), distilled])
    assert refused.value.code == "evaluation_overlap"
