"""What counts as right of a time that a job says is left."""

import pytest

from bench.kinds.time_left import Look, Posted, told


@pytest.mark.parametrize(
    ("said", "left", "right"),
    [
        (100.0, 100.0, True),
        (149.0, 100.0, True),
        (151.0, 100.0, False),
        (68.0, 100.0, True),
        (66.0, 100.0, False),
        (4.0, 1.0, True),
        (0.0, 3.0, True),
        (5.0, 1.0, False),
        (None, 1.0, False),
    ],
)
def test_a_time_is_right_within_the_factor_or_the_floor(said: float | None, left: float, right: bool) -> None:
    assert Look(stage="compress", said=said, left=left).is_right is right


def test_looks_are_counted_stage_by_stage_from_the_second_one_on() -> None:
    looks = [
        Look(stage="fetch", said=None, left=90.0),
        Look(stage="compress", said=None, left=80.0),
        Look(stage="compress", said=20.0, left=60.0),
        Look(stage="evaluate", said=31.0, left=30.0),
    ]
    row = told(Posted(name="a job", recipe={}), [(100.0, looks)])
    assert set(row.stages) == {"compress", "evaluate"}
    compress, evaluate = row.stages["compress"], row.stages["evaluate"]
    assert (compress.looks, compress.silent, compress.wrong, compress.worst) == (2, 1, 1, 3.0)
    assert (evaluate.looks, evaluate.silent, evaluate.wrong, evaluate.worst) == (1, 0, 0, None)
