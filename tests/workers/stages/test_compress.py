"""What a client reads of the progress, part by part."""

import pytest

from tests.support.inventories import llama_like
from workers.compression.spec.plans import Plan
from workers.stages.compress import block_of, place_of

FACTORED = Plan("kronecker", {}, 10, 8)
RESIZED = Plan("fusion", {}, 10, 8, removed=2, intermediate_size=5)
DISTILLED = Plan("fusion", {}, 10, 8, removed=2, absorption_tokens=9)
PUBLISHED = Plan("fusegpt", {}, 10, 8, removed=2, intermediate_size=5, absorption_tokens=9)
HYBRID = Plan("hybrid", {}, 10, 8, intermediate_size=5, factors="kronecker")
BLOCKS = llama_like().blocks


@pytest.mark.parametrize(
    ("plan", "part", "place"),
    [
        (FACTORED, 0, f"block 1 of {BLOCKS}"),
        (FACTORED, 1, f"block 1 of {BLOCKS}"),
        (FACTORED, BLOCKS, f"block {BLOCKS} of {BLOCKS}"),
        (FACTORED, BLOCKS + 1, "the output head"),
        (RESIZED, 0, "removing block 1 of 2"),
        (RESIZED, 2, f"refitting block 1 of {BLOCKS - 2}"),
        (RESIZED, BLOCKS, f"narrowing block 1 of {BLOCKS - 2}"),
        (DISTILLED, BLOCKS + 1, "distilling removed block 2 of 2 into those around it"),
        (PUBLISHED, 1, "fusing away block 2 of 2"),
        (PUBLISHED, 2, f"narrowing block 1 of {BLOCKS - 2}"),
        (HYBRID, BLOCKS - 1, f"narrowing block {BLOCKS} of {BLOCKS}"),
        (HYBRID, BLOCKS + 1, f"block 1 of {BLOCKS}"),
        (HYBRID, 2 * BLOCKS + 1, "the output head"),
    ],
)
def test_the_progress_names_what_is_at_work(plan: Plan, part: int, place: str) -> None:
    assert place_of(part, llama_like(), plan) == place


def test_only_a_part_that_is_a_block_by_number_is_reported_as_one() -> None:
    inventory = llama_like()
    assert [block_of(part, inventory, FACTORED) for part in (0, 1, 2, BLOCKS + 1)] == [0, 0, 1, None]
    assert block_of(0, inventory, RESIZED) is None
    assert block_of(BLOCKS + 2, inventory, HYBRID) == 1
