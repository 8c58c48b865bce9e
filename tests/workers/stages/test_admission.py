"""A job that cannot fit into its card's memory: refused before it begins, with what is missing and the way out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modelpress.contract.distillation import Distillation
from tests.support.inventories import llama_like
from tests.support.planning import plan_of
from workers.messages import AttemptFailed
from workers.stages import compute, memory
from workers.stages.admission import admit, demands, fewest_parameters

INVENTORY = llama_like()
PLAN = plan_of(INVENTORY, "width", 1.2)
BFLOAT16 = 2


def least(**distillation: Any) -> int:
    """Return the bytes that a job with this distillation needs at least."""
    return max(
        demand.bytes for demand in demands(INVENTORY, PLAN.parameters_after, Distillation(**distillation), BFLOAT16)
    )


def context_with(distillation: Distillation | None) -> Any:
    return SimpleNamespace(assignment=SimpleNamespace(recipe=SimpleNamespace(distillation=distillation)))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card whose free memory a test sets."""
    card = SimpleNamespace(free=0)
    monkeypatch.setattr(compute, "device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(compute, "dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(memory, "left_on_gpu", lambda _: card.free)
    return card


def test_a_training_needs_the_original_and_sixteen_bytes_for_each_weight_of_the_student() -> None:
    assert least() == BFLOAT16 * INVENTORY.total_parameters + 16 * PLAN.parameters_after


def test_norms_alone_need_no_moments_and_a_shard_is_not_counted() -> None:
    assert least(trainable="norms") == BFLOAT16 * INVENTORY.total_parameters + 4 * PLAN.parameters_after
    assert least(sharded=True) == demands(INVENTORY, PLAN.parameters_after, None, BFLOAT16)[0].bytes < least()


def test_a_training_that_cannot_fit_is_refused_with_what_it_needs_and_the_way_out(card: SimpleNamespace) -> None:
    card.free = least() - 1
    with pytest.raises(
        AttemptFailed, match=r"distillation.*at least.*GiB on the GPU.*`trainable` to 'norms'"
    ) as failure:
        admit(context_with(Distillation()), INVENTORY, PLAN.parameters_after)
    assert failure.value.code == "out_of_memory"


def test_what_fits_is_admitted(card: SimpleNamespace) -> None:
    card.free = least()
    admit(context_with(Distillation()), INVENTORY, PLAN.parameters_after)
    card.free = least(trainable="norms")
    admit(context_with(None), INVENTORY, PLAN.parameters_after)


def test_before_there_is_a_plan_the_smallest_result_of_all_ratios_is_counted() -> None:
    assert fewest_parameters(INVENTORY, (1.2, 4.0, 2.0)) == fewest_parameters(INVENTORY, (4.0,))
    assert fewest_parameters(INVENTORY, (1.2,)) <= PLAN.parameters_after


def test_beside_a_cpu_every_job_is_admitted(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "device", lambda _: torch.device("cpu"))
    admit(context_with(Distillation()), INVENTORY, PLAN.parameters_after)
