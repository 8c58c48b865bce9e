"""How long the stages of a job take, as far as its recipe and its model's headers tell."""

from typing import Any

import pytest

from modelpress.contract.recipe import Recipe
from modelpress.spec.inventory import Inventory
from tests.support.inventories import llama_like
from workers import expected
from workers.stages.registry import STAGES

LLAMA = llama_like()


def seconds(inventory: Inventory | None = LLAMA, **sections: Any) -> dict[str, float]:
    recipe = Recipe.model_validate({"model": "local:model", "target_ratio": 1.3, **sections})
    return expected.of_stages(recipe, inventory).seconds


def test_something_is_known_of_every_stage() -> None:
    assert expected.SECONDS.keys() == {stage.name for stage in STAGES}
    assert {stage.name for stage in STAGES if stage.once} == expected.ONCE


@pytest.mark.parametrize(
    ("stage", "little", "much"),
    [
        ("distill", {"method": "low_rank"}, {"method": "low_rank", "distillation": {}}),
        ("distill", {"distillation": {}}, {"distillation": {"tokens": 10_000_000}}),
        ("calibrate", {}, {"calibration": {"datasets": ["teacher:"], "sequences": 64}}),
        ("evaluate", {}, {"evaluation": {"max_tokens": 1_000_000}}),
        ("quantise", {"target_ratio": 3}, {"target_ratio": 3, "formats": ["safetensors", "gguf"]}),
    ],
)
def test_what_computes_more_takes_longer(stage: str, little: dict[str, Any], much: dict[str, Any]) -> None:
    assert seconds(**little)[stage] < seconds(**much)[stage]
