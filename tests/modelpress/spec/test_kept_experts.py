"""What the tensors of a mixture are called once some experts are gone."""

from modelpress.spec.architectures import ARCHITECTURES
from modelpress.spec.kept_experts import KeptExperts

LISTED = KeptExperts(ARCHITECTURES["qwen3_moe"]).keeping({1: (0, 3, 5)})
STACKED = KeptExperts(ARCHITECTURES["gpt_oss"]).keeping({1: (0, 3, 5)})
FIFTH = "model.layers.1.mlp.experts.5.up_proj.weight"


def test_the_experts_that_remain_are_numbered_without_gaps() -> None:
    assert LISTED.written(FIFTH) == "model.layers.1.mlp.experts.2.up_proj.weight"
    assert LISTED.original("model.layers.1.mlp.experts.2.up_proj.weight") == FIFTH


def test_other_blocks_and_other_tensors_keep_their_names() -> None:
    for name in (
        "model.layers.0.mlp.experts.5.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight",
    ):
        assert LISTED.written(name) == LISTED.original(name) == name
        assert not LISTED.lack(name)


def test_the_tensors_of_an_expert_that_went_are_gone() -> None:
    assert LISTED.lack("model.layers.1.mlp.experts.4.up_proj.weight")
    assert not LISTED.lack(FIFTH)


def test_router_and_stacked_experts_lose_rows() -> None:
    assert LISTED.rows("model.layers.1.mlp.gate.weight") == (0, 3, 5)
    assert STACKED.rows("model.layers.1.mlp.experts.down_proj_bias") == (0, 3, 5)
    assert STACKED.rows("model.layers.0.mlp.experts.down_proj") is None
    assert LISTED.rows("model.layers.1.input_layernorm.weight") is None


def test_a_later_removal_is_counted_as_in_the_original() -> None:
    assert LISTED.keeping({1: (3,)}).written("model.layers.1.mlp.experts.3.up_proj.weight").endswith("0.up_proj.weight")
