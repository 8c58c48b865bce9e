"""The recipe refuses what can be seen to be wrong without looking at a model."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from app.contract.recipe import Method, Recipe
from workers.compression.accounting.catalog import names

VALID: dict[str, Any] = {"model": "org/name", "target_ratio": 1.5}


def test_the_contract_and_the_catalog_name_the_same_methods() -> None:
    assert set(get_args(Method)) == set(names())


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"target_ratio": 1.0}, "send 1|above 1"),
        ({"target_ratio": 0.5}, "send 2"),
        ({"target_ratio": -1}, "such as 1.5"),
        ({"model": "name"}, "org/name"),
        ({"model": "org/name\n"}, "org/name"),
        ({"model": "local:/etc/passwd"}, "local:NAME"),
        ({"evaluation": {"window": 1024, "max_tokens": 512}}, "lower window"),
        ({"evaluation": {"datasets": ["https://example.org/text"]}}, "builtin:NAME"),
        ({"metadata": {"key": "x" * 513}}, "values 512"),
        ({"method": "magic"}, "kronecker"),
        ({"unknown": 1}, "not permitted"),
    ],
)
def test_a_wrong_field_is_refused_with_the_way_out(changes: dict[str, Any], way_out: str) -> None:
    with pytest.raises(ValidationError, match=way_out):
        Recipe.model_validate({**VALID, **changes})
