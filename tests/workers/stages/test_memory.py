"""What a job does where a model does not fit into memory: it streams, says what it did not measure, and succeeds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.jobs import done
from workers.messages import Assignment
from workers.stages.memory import holds, left
from workers.stages.meter import Meter


def test_a_model_that_fits_is_timed_and_writes(assignment: Assignment) -> None:
    metrics = done(assignment, Meter()).metrics.after
    assert metrics.prefill_tokens_per_second is not None
    assert metrics.decode_tokens_per_second is not None
    assert metrics.sample is not None
    assert metrics.peak_memory_bytes is not None
    assert metrics.peak_memory_bytes > 10**8


def test_one_that_does_not_fit_is_compressed_measured_and_verified_but_not_timed(assignment: Assignment) -> None:
    metrics = done(assignment.model_copy(update={"memory_bytes": 1}), Meter()).metrics
    assert metrics.ratio >= 1.19
    assert metrics.after.perplexity.keys() == {"local:b.txt"}
    assert metrics.after.prefill_tokens_per_second is None
    assert metrics.after.decode_tokens_per_second is None
    assert metrics.after.sample is None
    assert metrics.after.peak_memory_bytes is None


def test_what_is_left_of_an_operators_limit_is_less_what_the_process_has_taken() -> None:
    assert left(10**12) < 10**12 - 10**7


@pytest.mark.parametrize(("free", "fits"), [(2_501, True), (2_500, False)])
def test_on_a_gpu_its_own_memory_counts(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free - 100, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 200)
    inventory = SimpleNamespace(total_parameters=1000)
    model: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, inventory=inventory)
    context: Any = None
    assert holds(context, model) is fits
