"""One draw from each of many distributions."""

import torch

from workers.compression.drawing import draw_from_groups, draw_from_rows


def test_places_are_drawn_as_often_as_they_weigh() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    found = draw_from_rows(weights.expand(4000, -1).cumsum(-1), torch.Generator().manual_seed(0))
    counts = torch.bincount(found, minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert abs(counts[3].item() / 4000 - 0.75) < 0.03


def test_each_row_has_a_distribution_of_its_own() -> None:
    assert draw_from_rows(torch.eye(3).cumsum(-1), torch.Generator().manual_seed(0)).tolist() == [0, 1, 2]


def test_of_each_group_a_place_is_drawn_as_often_as_it_weighs() -> None:
    weights, counts = torch.tensor([1.0, 3.0, 0.0, 5.0, 0.0, 2.0, 2.0]), torch.tensor([3, 1, 3])
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([draw_from_groups(weights, counts, generator) for _ in range(4000)])
    shares = torch.stack([(found == place).double().mean(0) for place in range(len(weights))])
    expected = torch.zeros(7, 3, dtype=torch.float64)
    expected[:3, 0] = torch.tensor([0.25, 0.75, 0.0])
    expected[3, 1] = 1
    expected[4:, 2] = torch.tensor([0.0, 0.5, 0.5])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    assert (shares[expected == 0] == 0).all()
