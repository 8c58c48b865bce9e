"""The recipe refuses what can be seen to be wrong without looking at a model."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from modelpress.contract.recipe import Calibration, Recipe
from modelpress.spec.criteria import CRITERIA, Criterion
from modelpress.spec.formats import FORMATS
from modelpress.spec.methods.width import WidthOptions
from workers.compression.steps.influence import SCORERS

VALID: dict[str, Any] = {"model": "org/name", "target_ratio": 1.5}


def test_the_schema_lists_and_describes_every_registered_format() -> None:
    field = Recipe.model_json_schema()["properties"]["formats"]
    assert field["items"]["enum"] == list(FORMATS)
    assert all(form.description in field["description"] for form in FORMATS.values())


def test_without_a_word_the_result_is_written_once() -> None:
    assert Recipe.model_validate(VALID).formats == ("safetensors",)


def test_recipe_descriptions_and_engine_name_the_same_criteria_for_a_removal() -> None:
    assert set(get_args(Criterion)) == set(CRITERIA) == set(SCORERS)


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"target_ratio": 1.0}, "send 1|above 1"),
        ({"target_ratio": 0.5}, "send 2"),
        ({"target_ratio": -1}, "such as 1.5"),
        ({"target_ratio": [1.2, 0.5]}, r"target_ratio\.1\n.*send 2"),
        ({"target_ratio": [1.2, 1.2]}, "each ratio once"),
        ({"target_ratio": []}, "at least 1"),
        ({"target_ratio": [1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]}, "at most 8"),
        ({"target_ratio": [1.2, float("inf")]}, "finite number"),
        ({"target_ratio": "small"}, "valid number"),
        ({"model": "name"}, "org/name"),
        ({"model": "org/name\n"}, "org/name"),
        ({"model": "local:/etc/passwd"}, "local:NAME"),
        ({"evaluation": {"window": 1024, "max_tokens": 512}}, "lower window"),
        ({"evaluation": {"datasets": ["https://example.org/text"]}}, "builtin:NAME"),
        ({"evaluation": {"datasets": ["teacher:"]}}, "no independent test"),
        ({"calibration": {"datasets": ["teacher:gpt2"]}}, "or 'teacher:'"),
        ({"calibration": {"datasets": []}}, "at least 1"),
        ({"calibration": {"datasets": ["local:a", "local:a"]}}, "each dataset once"),
        ({"calibration": {"datasets": ["local:a", "local:b"], "sequences": 1}}, "none for local:a; raise sequences"),
        ({"calibration": {"datasets": ["local:a", "local:b"], "shares": [1]}}, "1 shares for 2 datasets; send one for"),
        ({"calibration": {"datasets": ["local:a"], "shares": [0]}}, "greater than or equal to 1"),
        ({"distillation": {"datasets": ["local:a", "local:b"], "shares": [1, 1000]}}, "of 512 for local:a; raise tok"),
        ({"distillation": {"datasets": ["nowhere"]}}, "builtin:NAME"),
        ({"distillation": {"tokens": 2047}}, "less than one batch, .* .2048.; raise tokens"),
        ({"distillation": {"tokens": 4095, "phases": 2}}, "less than one batch, .* .2048., to each of 2 phases"),
        ({"distillation": {"phases": 0}}, "greater than or equal to 1"),
        ({"distillation": {"learning_rate": 0}}, "greater than 0"),
        ({"distillation": {"temperature": 0}}, "greater than or equal to 0.1"),
        ({"distillation": {"warmup_ratio": 1.5}}, "less than or equal to 1"),
        ({"distillation": {"hidden_weight": -1}}, "greater than or equal to 0"),
        ({"distillation": {"teacher_top_k": 32, "hidden_weight": 0.5}}, "not both"),
        ({"distillation": {"teacher_top_k": 32, "sharded": True}}, "teacher_top_k or sharded, not both"),
        ({"distillation": {"trainable": "head"}}, "'all', 'factors' or 'norms'"),
        ({"method": {"name": "width", "tokens": 1000}}, "not permitted"),
        ({"method": {"name": "fusion", "key_value_heads": 1}}, "not permitted"),
        ({"width": {}}, "not permitted"),
        ({"method": {}}, "send the name of a method"),
        ({"method": 3}, "send the name of a method"),
        ({"method": {"name": "width", "key_value_heads": 0}}, "greater than or equal to 1"),
        ({"method": {"name": "width", "heads": 1}}, "not permitted"),
        ({"method": {"name": "fusion", "criterion": "taste"}}, "'macro_influence'.*or 'trial_fusion'"),
        ({"method": {"name": "fusegpt", "tokens": 0}}, "greater than or equal to 16"),
        ({"evaluation": {"gate": {}}}, "at least one of max_perplexity_ratio, min_top1_agreement"),
        ({"evaluation": {"gate": {"max_perplexity_ratio": 0.9}}}, "greater than or equal to 1"),
        ({"evaluation": {"gate": {"min_top1_agreement": 90}}}, "less than or equal to 1"),
        ({"evaluation": {"gate": {"perplexity": 2}}}, "not permitted"),
        ({"evaluation": {"tasks": ["../task.yaml"]}}, "the name of a task"),
        ({"evaluation": {"tasks": [".hidden"]}}, "the name of a task"),
        ({"evaluation": {"tasks": ["x" * 129]}}, "the name of a task"),
        ({"evaluation": {"tasks": ["arc_easy", "arc_easy"]}}, "each task once"),
        ({"evaluation": {"tasks": [f"task{number}" for number in range(17)]}}, "at most 16"),
        ({"evaluation": {"tasks": ["arc_easy"], "task_limit": 0}}, "greater than or equal to 1"),
        ({"evaluation": {"task_limit": 10}}, "no effect without tasks"),
        ({"metadata": {"key": "x" * 513}}, "values up to 512"),
        ({"method": "magic"}, "no such method; there are auto, quantisation, low_rank"),
        ({"formats": ["safetensors", "int2"]}, "send one of safetensors, dense, gguf"),
        ({"formats": ["safetensors", "dense", "dense"]}, "each format once"),
        ({"formats": ["dense"]}, "'safetensors' is always written, so add it to the list"),
        ({"formats": []}, "at least 1"),
        ({"unknown": 1}, "not permitted"),
        ({"precision": 16, "embedding_precision": 8}, "leave embedding_precision out"),
    ],
)
def test_a_wrong_field_is_refused_with_the_way_out(changes: dict[str, Any], way_out: str) -> None:
    with pytest.raises(ValidationError, match=way_out):
        Recipe.model_validate({**VALID, **changes})


def test_a_list_of_ratios_is_kept_as_it_was_sent() -> None:
    recipe = Recipe.model_validate({**VALID, "target_ratio": [1.5, 1.2]})
    assert (recipe.ratios, recipe.is_sweep) == ((1.5, 1.2), True)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.at(1.2) == Recipe.model_validate({**VALID, "target_ratio": 1.2})


def test_a_list_of_one_ratio_is_a_sweep_and_a_number_is_none() -> None:
    assert Recipe.model_validate({**VALID, "target_ratio": [1.5]}).is_sweep
    assert not Recipe.model_validate(VALID).is_sweep
    assert Recipe.model_validate(VALID).ratios == (1.5,)


@pytest.mark.parametrize(
    ("shares", "sequences", "divided"),
    [(None, 7, (2, 2, 3)), ((1, 2, 1), 8, (2, 4, 2)), ((1, 5, 3), 10, (1, 5, 4)), ((3, 1, 1), 512, (307, 102, 103))],
)
def test_sequences_are_divided_by_the_shares(shares: Any, sequences: int, divided: tuple[int, ...]) -> None:
    datasets = ["local:a", "local:b", "teacher:"]
    calibration = Calibration.model_validate({"datasets": datasets, "shares": shares})
    assert calibration.divided(sequences) == dict(zip(datasets, divided, strict=True))


def test_without_a_section_of_its_own_nothing_is_distilled() -> None:
    assert Recipe.model_validate(VALID).distillation is None


def test_the_default_tries_several_methods() -> None:
    assert Recipe.model_validate(VALID).method.name == "auto"


def test_a_recipe_sent_with_what_was_set_alone_names_its_method() -> None:
    recipe = Recipe.model_validate({**VALID, "method": WidthOptions(key_value_heads=2)})
    sent = recipe.model_dump(mode="json", exclude_unset=True)
    assert sent["method"] == {"name": "width", "key_value_heads": 2}
    assert Recipe.model_validate(sent) == recipe


def test_tasks_are_named_as_the_library_names_them() -> None:
    named = ["arc_easy", "tmmluplus_education_(profession_level)", "leaderboard-v2.1"]
    evaluation = Recipe.model_validate({**VALID, "evaluation": {"tasks": named, "task_limit": 100}}).evaluation
    assert (evaluation.tasks, evaluation.task_limit) == (tuple(named), 100)
    assert Recipe.model_validate(VALID).evaluation.tasks == ()


def test_every_dataset_is_told_with_the_field_that_names_it() -> None:
    recipe = Recipe.model_validate({**VALID, "distillation": {"datasets": ["local:a", "local:b"]}})
    assert dict(recipe.texts()) == {
        "calibration.datasets.0": "builtin:python-docs",
        "distillation.datasets.0": "local:a",
        "distillation.datasets.1": "local:b",
        "evaluation.datasets.0": "builtin:python-docs-test",
    }


def test_text_that_the_original_writes_is_none_to_be_had() -> None:
    recipe = Recipe.model_validate({**VALID, "calibration": {"datasets": ["teacher:", "local:a"]}})
    assert dict(recipe.texts()) == {
        "calibration.datasets.1": "local:a",
        "evaluation.datasets.0": "builtin:python-docs-test",
    }


def test_bytes_may_stand_in_the_place_of_a_ratio() -> None:
    recipe = Recipe.model_validate({"model": "local:model", "target_bytes": "1.5GB"})
    assert recipe.sized(6_000_000_000).ratios == (4.0,)


@pytest.mark.parametrize("targets", [{}, {"target_ratio": 4, "target_bytes": "1GB"}])
def test_a_recipe_has_one_target(targets: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="or target_bytes, and not both"):
        Recipe.model_validate({"model": "local:model", **targets})


def test_the_target_of_a_kept_recipe_is_a_ratio() -> None:
    sent = Recipe.model_validate({"model": "local:model", "target_bytes": 250})
    kept = sent.sized(1000).model_dump(mode="json")
    assert Recipe.model_validate(kept).target_ratio == 4.0
