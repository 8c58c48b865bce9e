"""One draw from each of many distributions."""

import torch

from workers.compression.drawing import drawn


def test_places_are_drawn_as_often_as_they_weigh() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    found = drawn(weights.expand(4000, -1).cumsum(-1), torch.Generator().manual_seed(0))
    counts = torch.bincount(found, minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert abs(counts[3].item() / 4000 - 0.75) < 0.03


def test_each_row_has_a_distribution_of_its_own() -> None:
    assert drawn(torch.eye(3).cumsum(-1), torch.Generator().manual_seed(0)).tolist() == [0, 1, 2]
