"""Training on the card of `tests.support.card`: nothing lies on the wrong device, and the host hardly ever waits."""

import copy
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from modelpress.spec.codes import CODES
from tests.support.card import CARD, NUMBER, TO_CARD, TO_HOST, card
from tests.support.students import student_of, windows_of_text
from workers.compression.math.rounding import rounded
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.distillation import CARD_TOKENS, CPU_SEQUENCES, distil, sequences_at_a_time
from workers.compression.training.rounded import rounded_student
from workers.compression.training.settings import DistillationSettings

LENGTH = 12
UP = "model.layers.1.mlp.up_proj.weight"
SETTINGS = DistillationSettings(tokens=6 * 4 * LENGTH, batch_size=4, micro_batch_size=2, interval=100)


@pytest.fixture
def _a_card_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch offers autocast, fused optimizers, and other storage for a parameter on devices that it knows."""
    monkeypatch.setattr(parametrize, "get_swap_module_params_on_conversion", lambda: True)
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
    assert waits[TO_CARD] <= 2 * 6  # the batch, and the step's number
    # transformers looks for packed sequences once in each forward pass: of two models, for two micro-batches.
    assert waits[NUMBER] <= 4 * 6
    assert not waits.keys() - {TO_HOST, TO_CARD, NUMBER}


@pytest.mark.usefixtures("_a_card_that_trains")
def test_a_rounded_model_is_trained_on_a_card_as_on_the_cpu(source: Path) -> None:
    text = windows_of_text(10, LENGTH)

    def trained(device: torch.device | str, waits: Counter[str]) -> tuple[float, ...]:
        original = StreamedModel.open(source, device=device)
        weight = original.read([UP])[UP].cpu()
        encoded = rounded(CODES["iq4_nl"], weight, torch.eye(weight.shape[1], dtype=torch.float64))
        part = CompressedPart("rounded", tensors=encoded.tensors(UP), encodings={UP: "iq4_nl"})
        student = rounded_student(EditedModel(original, [part]))
        waits.clear()
        return distil(original.whole(), student, text, SETTINGS).losses

    expected = trained("cpu", Counter())
    with card() as waits:
        assert trained(CARD, waits) == pytest.approx(expected, rel=0.01)
    assert waits[TO_CARD] < 5 * 6  # a few in each step, and none for each pass of a rounded matrix


def test_a_device_computes_as_many_sequences_at_a_time_as_suit_it() -> None:
    cpu, card_ = torch.device("cpu"), torch.device("cuda")
    assert [sequences_at_a_time(cpu, length) for length in (128, 4096)] == [CPU_SEQUENCES] * 2
    assert [sequences_at_a_time(card_, length) for length in (512, CARD_TOKENS, 2 * CARD_TOKENS)] == [32, 1, 1]
