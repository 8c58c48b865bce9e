"""Text that was learnt from is found in the text that judges, and nothing else is."""

import pytest
import torch
from torch import Tensor

from workers.compression.evaluation.overlap import shared

PASSAGE = 10


def text(length: int, seed: int) -> Tensor:
    return torch.randint(50_000, (length,), generator=torch.Generator().manual_seed(seed))


def test_a_copy_is_shared_as_a_whole() -> None:
    assert shared(text(200, 0), [text(200, 0)]) == 1.0


def test_other_text_shares_nothing() -> None:
    assert shared(text(200, 0), [text(5000, 1)], PASSAGE) == 0.0


def test_a_copied_passage_counts_with_its_tokens_wherever_it_stands() -> None:
    judged, learnt = text(200, 0), text(300, 1)
    learnt[7:47] = judged[100:140]
    assert shared(judged, [learnt], PASSAGE) == pytest.approx(40 / 200)


def test_passages_that_touch_are_counted_once() -> None:
    judged, learnt = text(200, 0), text(300, 1)
    learnt[:20] = judged[50:70]
    learnt[100:120] = judged[60:80]
    assert shared(judged, [learnt], PASSAGE) == pytest.approx(30 / 200)


def test_less_than_a_passage_in_common_is_chance() -> None:
    judged, learnt = text(200, 0), text(300, 1)
    learnt[: PASSAGE - 1] = judged[50 : 50 + PASSAGE - 1]
    assert shared(judged, [learnt], PASSAGE) == 0.0


def test_the_order_of_the_tokens_matters() -> None:
    judged = text(100, 0)
    assert shared(judged, [judged.flip(0)], PASSAGE) == 0.0


def test_every_text_that_was_learnt_from_counts() -> None:
    judged = text(100, 0)
    assert shared(judged, [text(40, 1), judged[:50], judged[50:]], PASSAGE) == 1.0


def test_a_text_shorter_than_a_passage_is_looked_for_as_a_whole() -> None:
    judged = text(20, 0)
    assert shared(judged, [torch.cat((text(30, 1), judged))]) == 1.0
    assert shared(judged, [judged[:-1]]) == 0.0


def test_an_empty_text_shares_nothing() -> None:
    assert shared(text(0, 0), [text(10, 0)]) == 0.0
