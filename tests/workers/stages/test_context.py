"""How much of the whole job a stage is."""

from typing import Any

import pytest

from app.contract.job import Stage
from app.contract.recipe import Recipe
from workers.stages.context import FETCHED, shares_of


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"model": "local:model", "target_ratio": 1.3, **sections})


@pytest.mark.parametrize("sections", [{}, {"distillation": {}}])
def test_all_stages_and_the_fetching_are_the_whole(sections: dict[str, Any]) -> None:
    assert sum(shares_of(recipe(**sections)).values()) + FETCHED == pytest.approx(1)


def test_without_distillation_nothing_is_set_aside_for_it() -> None:
    assert shares_of(recipe())[Stage.DISTILL] == 0


def test_distillation_dominates_where_it_is_asked_for() -> None:
    shares = shares_of(recipe(distillation={}))
    assert shares[Stage.DISTILL] > 0.5
    assert shares_of(recipe(distillation={"tokens": 10_000_000}))[Stage.DISTILL] > shares[Stage.DISTILL]
