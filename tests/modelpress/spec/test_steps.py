"""The parts that steps name: how many there are, and what people read of them."""

import pytest

from modelpress.spec.plan import Plan
from modelpress.spec.steps import (
    Absorb,
    BaseStep,
    Factor,
    FactorToSize,
    Fuse,
    Label,
    Narrow,
    Refit,
    Remove,
)
from tests.support.inventories import llama_like

BLOCKS = llama_like().blocks
FACTOR = Factor(structures={})
REMOVE = Remove(count=2, criterion="macro_influence")
NARROW = Narrow(intermediate_size=5)
FUSE = Fuse(count=2, criterion="macro_influence")


def labels(*steps: BaseStep) -> tuple[Label, ...]:
    plan = Plan.model_validate({"method": "any", "steps": steps, "parameters_before": 10, "parameters_after": 8})
    return plan.labels(llama_like(tied=False))


@pytest.mark.parametrize(
    ("steps", "part", "text"),
    [
        ((FACTOR,), 0, "the embedding"),
        ((FACTOR,), 1, f"block 1 of {BLOCKS}"),
        ((FACTOR,), BLOCKS, f"block {BLOCKS} of {BLOCKS}"),
        ((FACTOR,), BLOCKS + 1, "the output head"),
        ((REMOVE, Refit(), NARROW), 0, "removing block 1 of 2"),
        ((REMOVE, Refit(), NARROW), 2, f"refitting block 1 of {BLOCKS - 2}"),
        ((REMOVE, Refit(), NARROW), BLOCKS, f"narrowing block 1 of {BLOCKS - 2}"),
        ((REMOVE, Refit(), Absorb(tokens=9)), BLOCKS + 1, "distilling removed block 2 of 2 into those around it"),
        ((FUSE, NARROW), 1, "fusing away block 2 of 2"),
        ((FUSE, NARROW), 2, f"narrowing block 1 of {BLOCKS - 2}"),
        ((NARROW, FactorToSize(method="low_rank", parameters=8)), BLOCKS - 1, f"narrowing block {BLOCKS} of {BLOCKS}"),
        ((NARROW, FactorToSize(method="low_rank", parameters=8)), 2 * BLOCKS + 1, "the output head"),
    ],
)
def test_the_progress_names_what_is_at_work(steps: tuple[BaseStep, ...], part: int, text: str) -> None:
    assert labels(*steps)[part].text == text


def test_only_a_part_that_is_a_block_by_number_is_reported_as_one() -> None:
    assert [label.block for label in labels(FACTOR)] == [0, *range(BLOCKS), None]
    assert {label.block for label in labels(REMOVE, Refit(), NARROW)} == {None}


def test_a_step_that_makes_some_of_the_parts_names_those_alone() -> None:
    some = FACTOR.model_copy(update={"first": 2, "last": BLOCKS + 1})
    assert labels(some) == labels(FACTOR)[2 : BLOCKS + 1]


@pytest.mark.parametrize("step", [REMOVE, Refit(), Absorb(tokens=9), FUSE, NARROW, FACTOR])
def test_a_step_says_in_a_sentence_what_it_did(step: BaseStep) -> None:
    assert step.summary().endswith(".")
