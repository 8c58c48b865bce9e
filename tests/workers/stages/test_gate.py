"""What a result is told that is not as good as was asked."""

import math

import pytest

from modelpress.contract.job import Comparison, Metrics
from modelpress.contract.recipe import Gate
from workers.stages.gate import missed


def measured(perplexities: dict[str, float], agreements: dict[str, float]) -> Metrics:
    return Metrics(
        parameters=1,
        bytes=1,
        perplexity=perplexities,
        top1_agreement=agreements,
        prefill_tokens_per_second=None,
        decode_tokens_per_second=None,
        sample=None,
    )


FOUND = Comparison(
    before=measured({"near": 10.0, "far": 20.0}, {}),
    after=measured({"near": 12.0, "far": 50.0}, {"near": 0.8, "far": 0.5}),
)


@pytest.mark.parametrize(
    "gate", [None, Gate(max_perplexity_ratio=2.5), Gate(min_top1_agreement=0.5), Gate(max_perplexity_ratio=3.0)]
)
def test_a_result_at_the_bound_misses_nothing(gate: Gate | None) -> None:
    assert missed(gate, FOUND) is None


def test_a_miss_names_the_dataset_the_figure_and_the_bound() -> None:
    said = missed(Gate(max_perplexity_ratio=1.5), FOUND)
    assert said is not None
    assert said.startswith("the perplexity on far is 2.5 times the original's, above max_perplexity_ratio (1.5)")
    assert "near" not in said


def test_every_miss_is_named() -> None:
    said = missed(Gate(max_perplexity_ratio=1.1, min_top1_agreement=0.9), FOUND)
    assert said is not None
    assert said.count("perplexity on") == said.count("agreement on") == 2


def test_what_is_no_number_misses() -> None:
    broken = FOUND.model_copy(update={"after": measured({"near": math.nan, "far": 20.0}, {})})
    said = missed(Gate(max_perplexity_ratio=1.5), broken)
    assert said is not None
    assert "near" in said
