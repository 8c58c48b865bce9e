"""An architecture is found by structure as somebody would have registered it, or refused with the reason."""

from dataclasses import replace

import pytest

from modelpress.spec.architectures import ARCHITECTURES, INFERRED
from tests.support.models import INFERRED_SAMPLE
from workers.compression.inferred.block import NotUnderstood
from workers.compression.inferred.infer import infer
from workers.compression.inferred.streaming import may_be_shallower

LAYOUTS = ("llama", "gpt2", "gpt_neox", "gptj", "olmo2", "phi3", "granite")
"""Gated, transposed with stacked heads, stacked heads, parallel, behind norms, stacked gate, scaled."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_registered_architecture_is_found_as_it_is_registered(name: str) -> None:
    registered = replace(ARCHITECTURES[name], gguf=None, old_head=None)
    assert infer(name) == registered


@pytest.mark.parametrize("name", INFERRED_SAMPLE)
def test_what_was_found_of_an_architecture_is_found_again(name: str) -> None:
    stated = INFERRED.understood[name]
    assert infer(name) == replace(stated, fixed_depth=False)
    assert may_be_shallower(name) is not stated.fixed_depth


def test_blocks_stay_where_they_depend_on_their_number() -> None:
    assert INFERRED.understood["minicpm3"].fixed_depth
    assert not INFERRED.understood["helium"].fixed_depth


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rwkv", "state of its own kind"),
        ("mamba", "state of its own kind"),
        ("t5", "no causal language model"),
        ("bart", "encoder with a decoder"),
        ("bert", "see those behind them"),
        ("gemma3", "several models"),
        ("mixtral", "3 dimensions"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(NotUnderstood, match=reason):
        infer(name)


def test_no_architecture_is_both_registered_and_inferred() -> None:
    assert not ARCHITECTURES.keys() & INFERRED.understood.keys()
    assert not INFERRED.refused.keys() & INFERRED.understood.keys()
