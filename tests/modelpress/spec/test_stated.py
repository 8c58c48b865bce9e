"""What config.json states by name or as a number is refused by its field, where transformers does not know it."""

import math
from typing import Any

import pytest
from transformers.activations import ACT2FN
from transformers.configuration_utils import ALLOWED_LAYER_TYPES, remap_legacy_layer_types
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from modelpress.spec.errors import MalformedModel
from modelpress.spec.stated import ACTIVATIONS, LAYER_TYPES, OLDER_LAYER_TYPES, ROPE_TYPES, check_stated


def test_the_known_names_are_those_of_transformers() -> None:
    assert set(ACT2FN) == ACTIVATIONS
    assert set(ALLOWED_LAYER_TYPES) == LAYER_TYPES
    assert set(remap_legacy_layer_types(sorted(OLDER_LAYER_TYPES))) <= LAYER_TYPES
    assert set(ROPE_INIT_FUNCTIONS) | {"default", "su"} == ROPE_TYPES


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"hidden_act": "os.system"}, "'os.system' as hidden_act"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"layer_types": ["full_attention", "evil"]}, "'evil' as layer_types"),
        ({"layer_types": [["full_attention"]]}, "layer_types"),
        ({"layer_types": "full_attention"}, "a list is expected"),
        ({"dtype": "evil"}, "'evil' as dtype"),
        ({"torch_dtype": 16}, "torch_dtype"),
        ({"rms_norm_eps": math.nan}, "'rms_norm_eps' of config.json holds NaN"),
        ({"rope_parameters": {"full_attention": {"factor": [math.nan]}}}, "'rope_parameters' of config.json holds NaN"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps"),
        ({"layer_norm_epsilon": -1}, "layer_norm_epsilon"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "evil"}}, "'evil'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type of rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "evil"}}}, "'evil'"),
        ({"rope_scaling": [1]}, "an object is expected"),
    ],
)
def test_what_transformers_does_not_know_is_refused_by_its_field(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MalformedModel, match=complaint):
        check_stated(config)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": None, "dtype": None, "layer_types": None, "rope_scaling": None},
        {"hidden_act": "silu", "torch_dtype": "torch.float16", "layer_types": ["mamba", "full_attention"]},
        {"rms_norm_eps": 0, "time_step_limit": [0.0, math.inf]},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    ],
)
def test_what_transformers_knows_passes(config: dict[str, Any]) -> None:
    check_stated(config)
