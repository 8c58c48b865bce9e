"""What a client reads of the progress, part by part."""

import pytest

from workers.stages.compress import place_of


@pytest.mark.parametrize(
    ("part", "place"), [(0, "block 1 of 3"), (1, "block 1 of 3"), (3, "block 3 of 3"), (4, "the output head")]
)
def test_a_part_behind_the_blocks_is_the_head(part: int, place: str) -> None:
    assert place_of(part, 3) == place
