"""Training on the card of `tests.support.card`: nothing lies on the wrong device, and the host hardly ever waits."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.card import CARD, NUMBER, TO_CARD, TO_HOST, card
from tests.support.students import student_of, windows_of_text
from workers.compression.training.distillation import CARD_TOKENS, CPU_SEQUENCES, distil, sequences_at_a_time
from workers.compression.training.settings import DistillationSettings

LENGTH = 12
SETTINGS = DistillationSettings(tokens=6 * 4 * LENGTH, batch_size=4, micro_batch_size=2, interval=100)


@pytest.fixture
def _a_card_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch offers autocast and fused optimizers on devices that it knows."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    plain = torch.optim.AdamW

    def adamw(*arguments: Any, **options: Any) -> torch.optim.AdamW:
        return plain(*arguments, **options | {"fused": None, "foreach": False})

    monkeypatch.setattr(torch.optim, "AdamW", adamw)


@pytest.mark.usefixtures("_a_card_that_trains")
@pytest.mark.parametrize("changes", [{}, {"hidden_weight": 1.0, "cross_entropy_weight": 0.5, "max_gradient_norm": 0.1}])
def test_a_step_fetches_its_loss_and_norm_together_and_nothing_else(
    changes: Any, teacher: PreTrainedModel, source: Path
) -> None:
    settings, text = replace(SETTINGS, **changes), windows_of_text(10, LENGTH)
    expected = distil(teacher, student_of(source), text, settings)
    with card() as waits:
        theirs, ours = (model.to(CARD) for model in (copy.deepcopy(teacher), student_of(source)))
        waits.clear()
        found = distil(theirs, ours, text, settings)
    assert found.losses == pytest.approx(expected.losses, rel=0.01)
    assert waits[TO_HOST] == len(found.losses) == 6
    # transformers looks for packed sequences once in each forward pass: of two models, for two micro-batches.
    assert waits[NUMBER] <= 4 * 6
    assert not waits.keys() - {TO_HOST, TO_CARD, NUMBER}


def test_a_device_computes_as_many_sequences_at_a_time_as_suit_it() -> None:
    cpu, card_ = torch.device("cpu"), torch.device("cuda")
    assert [sequences_at_a_time(cpu, length) for length in (128, 4096)] == [CPU_SEQUENCES] * 2
    assert [sequences_at_a_time(card_, length) for length in (512, CARD_TOKENS, 2 * CARD_TOKENS)] == [32, 1, 1]
