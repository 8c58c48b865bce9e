"""Divergence, agreement and perplexity, against what the whole models say."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tests.support.models import save_tiny_model, token_ids
from tests.support.text_models import write_tiny_model
from workers.compression.evaluation import fidelity
from workers.compression.evaluation.fidelity import compare, perplexity
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> StreamedModel:
    directory = tmp_path_factory.mktemp("models")
    save_tiny_model("qwen2", directory)
    return StreamedModel.open(directory)


@pytest.fixture(scope="module")
def shorter(original: StreamedModel) -> EditedModel:
    return EditedModel(original, [CompressedPart("block 0", removed=(0,))])


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, windows: Tensor) -> Tensor:
    logits: Tensor = model(windows).logits[:, :-1]
    return functional.log_softmax(logits.double(), dim=-1)


@pytest.mark.parametrize("limit", [1, 2**20])
def test_all_figures_are_those_of_the_whole_models(
    limit: int, original: StreamedModel, shorter: EditedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "ON_CPU", fidelity.Room(limit, limit))
    windows = token_ids(5, 9)
    p, q = (log_probabilities(model.whole(), windows) for model in (original, shorter))
    likelihood = q.gather(-1, windows[:, 1:].unsqueeze(-1)).mean()
    _, found = compare(original, [shorter], windows, batch=2)
    assert found.perplexity == pytest.approx((-likelihood).exp().item(), rel=1e-5)
    assert found.divergence == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found.tokens == 5 * 8


def test_perplexity_alone_is_that_beside_others(original: StreamedModel, shorter: EditedModel) -> None:
    windows = token_ids(3, 8)
    itself, _ = compare(original, [shorter], windows)
    assert perplexity(original, windows).value == pytest.approx(itself.perplexity, rel=1e-6)
    assert perplexity(original, windows).tokens == 3 * 7


def test_the_original_and_its_copy_agree_in_everything(original: StreamedModel) -> None:
    itself, copy = compare(original, [EditedModel(original)], token_ids(3, 8))
    assert (itself.divergence, itself.agreement) == (0.0, 1.0)
    assert copy == itself


def test_divergence_says_which_model_is_the_original(original: StreamedModel, shorter: EditedModel) -> None:
    windows = token_ids(3, 8)
    _, forth = compare(original, [shorter], windows)
    _, back = compare(shorter, [original], windows)
    assert forth.divergence != pytest.approx(back.divergence, rel=1e-3)


def test_a_model_is_judged_the_same_alone_and_beside_others(original: StreamedModel, shorter: EditedModel) -> None:
    windows = token_ids(3, 8)
    _, alone = compare(original, [shorter], windows)
    _, _, beside = compare(original, [EditedModel(original), shorter], windows)
    assert beside.divergence == pytest.approx(alone.divergence, rel=1e-6)
    assert beside.agreement == alone.agreement


def test_windows_without_anything_to_predict_are_refused(original: StreamedModel) -> None:
    with pytest.raises(ValueError, match="at least two tokens"):
        compare(original, [], token_ids(3, 1))


def test_models_of_different_vocabularies_are_refused(original: StreamedModel, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    with pytest.raises(ValueError, match="different vocabularies"):
        compare(original, [StreamedModel.open(tmp_path)], token_ids(3, 8))
