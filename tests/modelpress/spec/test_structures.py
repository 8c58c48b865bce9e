"""Counting what structures store, and their JSON form."""

import pytest

from modelpress.spec.structures import (
    Dense,
    Halved,
    Kronecker,
    LowRank,
    MalformedStructure,
    Pivoted,
    Structure,
    Tied,
    structure_from_dict,
)

STRUCTURES: tuple[Structure, ...] = (
    Dense(),
    LowRank(5),
    Pivoted(5),
    Pivoted(5, folded=True),
    Kronecker(3, (4, 6), (8, 2), permute_in=True),
    Halved(2),
    Tied("model.embed_tokens"),
)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_structure_survives_the_way_through_json(structure: Structure) -> None:
    assert structure_from_dict(structure.to_dict()) == structure


@pytest.mark.parametrize(
    "form", [{}, {"kind": "magic"}, {"kind": "low_rank"}, {"kind": "kronecker", "terms": 1, "out": [1]}, "low_rank"]
)
def test_a_malformed_description_is_refused(form: object) -> None:
    with pytest.raises(MalformedStructure):
        structure_from_dict(form)


def test_the_free_choice_of_basis_is_not_counted() -> None:
    assert LowRank(352).parameters(576, 1536) - Pivoted(352).parameters(576, 1536) == 352**2 - 576


def test_permutations_are_counted() -> None:
    plain, permuted = Kronecker(4, (384, 2), (768, 4)), Kronecker(4, (384, 2), (768, 4), True, True)
    assert plain.parameters(768, 3072) == 4 * (384 * 768 + 2 * 4)
    assert permuted.parameters(768, 3072) - plain.parameters(768, 3072) == 768 + 3072


@pytest.mark.parametrize("structure", [LowRank(65), Pivoted(64), Pivoted(0), Kronecker(1, (8, 8), (10, 8))])
def test_a_structure_that_does_not_fit_is_refused(structure: Structure) -> None:
    with pytest.raises(MalformedStructure):
        structure.parameters(64, 96)
