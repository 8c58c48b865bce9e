"""Which sequences each step takes."""

import pytest
import torch

from workers.compression.training.batches import BatchOrder, ContinuousBatches, DropLastBatches


def taken(order: BatchOrder, steps: int) -> list[int]:
    return torch.cat([order.batch(step) for step in range(steps)]).tolist()


def test_continuous_batches_take_every_sequence_once_an_epoch_also_where_a_batch_spans_two() -> None:
    found = taken(ContinuousBatches(sequences=10, batch_size=4), 5)
    assert sorted(found[:10]) == sorted(found[10:]) == list(range(10))
    assert found[:10] != found[10:]


def test_batches_that_drop_the_last_take_no_sequence_twice_an_epoch() -> None:
    found = taken(DropLastBatches(sequences=10, batch_size=4), 4)
    assert len(set(found[:8])) == len(set(found[8:])) == 8


def test_both_orders_agree_where_batches_fill_the_epoch() -> None:
    assert taken(ContinuousBatches(12, 4, seed=3), 9) == taken(DropLastBatches(12, 4, seed=3), 9)


def test_a_batch_larger_than_the_text_spans_epochs_or_takes_all_of_it() -> None:
    assert len(ContinuousBatches(3, 5).batch(0)) == 5
    assert sorted(DropLastBatches(3, 5).batch(7).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("kind", [ContinuousBatches, DropLastBatches])
def test_another_seed_is_another_order(kind: type[ContinuousBatches | DropLastBatches]) -> None:
    assert taken(kind(10, 5), 2) == taken(kind(10, 5), 2) != taken(kind(10, 5, seed=1), 2)
