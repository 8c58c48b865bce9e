"""What a job says of its result: figures beside the original's, on what they were measured, what it is held against."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelpress.contract.recipe import Gate
from tests.support.jobs import done, last_report
from tests.support.text_models import amplify_blocks
from workers.compression.evaluation.fidelity import Fidelity
from workers.messages import Assignment, ErrorReport
from workers.stages import compute, evaluate

DATASET = "local:b.txt"


def asking(assignment: Assignment, **evaluation: Any) -> Assignment:
    """Return the same job with other wishes for the evaluation."""
    recipe = assignment.recipe
    changed = recipe.evaluation.model_copy(update=evaluation)
    return assignment.model_copy(update={"recipe": recipe.model_copy(update={"evaluation": changed})})


def test_the_figures_are_those_of_the_downloaded_files(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "dtype", lambda _: torch.float32)
    report = done(assignment)
    tokenizer = AutoTokenizer.from_pretrained(assignment.model_path)
    text = assignment.texts[DATASET].read_text()
    windows = torch.tensor(tokenizer(text).input_ids[:64]).view(4, 16)
    found = []
    for directory in (assignment.model_path, report.package):
        model: Any = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
        with torch.no_grad():
            found.append(functional.log_softmax(model(windows).logits[:, :-1].double(), dim=-1))
    p, q = found
    after, agreement = report.metrics.after, (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert after.kl_divergence[DATASET] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-2)
    assert after.top1_agreement[DATASET] == pytest.approx(agreement, abs=0.02)
    assert not report.metrics.before.kl_divergence
    assert report.metrics.baseline is None


def test_what_was_measured_on_travels_with_the_package(assignment: Assignment) -> None:
    report = done(assignment)
    written = json.loads((report.package / "compression_report.json").read_text())["metrics"]["protocols"][DATASET]
    assert written == report.metrics.protocols[DATASET].model_dump()
    assert (written["window"], written["stride"], written["max_tokens"], written["overlap"]) == (16, 16, 64, 0.0)


def test_a_baseline_of_about_the_same_size_is_measured_likewise(assignment: Assignment) -> None:
    metrics = done(asking(assignment, baseline=True)).metrics
    assert metrics.baseline is not None
    assert metrics.baseline.parameters < metrics.before.parameters
    assert metrics.baseline.perplexity.keys() == metrics.baseline.kl_divergence.keys() == {DATASET}
    assert metrics.baseline.sample is not None


def test_a_result_that_misses_the_gate_is_done_and_says_so(assignment: Assignment) -> None:
    amplify_blocks(assignment.model_path)
    report = done(asking(assignment, gate=Gate(min_top1_agreement=1.0)))
    assert report.missed is not None
    assert DATASET in report.missed
    assert (report.package / "config.json").is_file()


def test_a_result_within_the_gate_misses_nothing(assignment: Assignment) -> None:
    assert done(asking(assignment, gate=Gate(max_perplexity_ratio=1000.0))).missed is None


def test_text_that_was_calibrated_on_is_refused_under_any_name(assignment: Assignment, tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_text(assignment.texts["local:a.txt"].read_text())
    whole = assignment.recipe.calibration.model_copy(update={"sequences": 1000})
    changes = {
        "texts": {**assignment.texts, DATASET: copy},
        "recipe": assignment.recipe.model_copy(update={"calibration": whole}),
    }
    report = last_report(assignment.model_copy(update=changes))
    assert isinstance(report, ErrorReport)
    assert report.code == "evaluation_overlap"
    assert DATASET in report.message


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_a_result_without_a_finite_perplexity_is_refused_in_words(
    perplexity: float, assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (Fidelity(10.0, 0.0, 1.0, 60), Fidelity(perplexity, 1.0, 0.5, 60))
    monkeypatch.setattr(evaluate, "compare", lambda *_: found)
    report = last_report(assignment)
    assert isinstance(report, ErrorReport)
    assert report.code == "not_finite"
    assert DATASET in report.message
