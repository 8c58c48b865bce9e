"""The closed forms: each loss is the one it is called after, and each gradient is its own loss's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from workers.compression.training.losses import (
    Loss,
    cross_entropy,
    divergence,
    relative_error,
    top_divergence,
    top_logits,
)

TOKENS, VOCABULARY = 5, 11


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def expected(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = ((each / temperature).log_softmax(-1) for each in (student, teacher))
    return functional.kl_div(ours, theirs, log_target=True, reduction="sum") * temperature**2


def assert_cost(found: Loss, loss: Tensor, student: Tensor) -> None:
    """The loss, and with it the gradient that autograd finds for it."""
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(found.value, loss.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_that_of_the_softened_distributions(temperature: float) -> None:
    student = logits(1).requires_grad_()
    found = divergence(student.detach(), logits(2), temperature)
    assert_cost(found, expected(student, logits(2), temperature), student)


def test_equal_logits_cost_nothing() -> None:
    found = divergence(logits(1), logits(1), 1.0)
    assert float(found.value) == 0
    assert not found.gradient.any()


def test_the_arguments_stay_as_they_are() -> None:
    student, teacher = logits(1), logits(2)
    divergence(student, teacher, 1.0)
    top_divergence(student, top_logits(teacher, 3, 1.0), 1.0)
    cross_entropy(student, torch.zeros(TOKENS, dtype=torch.int64))
    assert torch.equal(student, logits(1))
    assert torch.equal(teacher, logits(2))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_with_every_token_kept_the_cached_loss_is_the_exact_one(temperature: float) -> None:
    exact = divergence(logits(1), logits(2), temperature)
    cached = top_divergence(logits(1), top_logits(logits(2), VOCABULARY, temperature), temperature)
    torch.testing.assert_close(cached.value, exact.value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached.gradient, exact.gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_tokens_that_are_not_kept_share_a_bucket(temperature: float) -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    found = top_divergence(student.detach(), top_logits(teacher, 4, temperature), temperature)
    places = teacher.topk(4).indices
    buckets = []
    for each in (student, teacher):
        probabilities = (each / temperature).softmax(-1)
        kept = probabilities.gather(-1, places)
        buckets.append(torch.cat((kept, 1 - kept.sum(-1, keepdim=True)), dim=-1).log())
    assert_cost(found, functional.kl_div(*buckets, log_target=True, reduction="sum") * temperature**2, student)


def test_a_bucket_never_costs_more_than_its_tokens() -> None:
    exact = float(divergence(logits(1), logits(2), 1.0).value)
    found = [float(top_divergence(logits(1), top_logits(logits(2), k, 1.0), 1.0).value) for k in range(1, VOCABULARY)]
    assert found == sorted(found)
    assert found[-1] <= exact + 1e-5


def test_a_student_that_gives_the_bucket_nothing_costs_a_finite_amount() -> None:
    certain = torch.full((1, VOCABULARY), -1e4)
    certain[0, 0] = 0
    found = top_divergence(certain, top_logits(logits(2)[:1], 1, 1.0), 1.0)
    assert torch.isfinite(found.value)
    assert torch.isfinite(found.gradient).all()


def test_cross_entropy_passes_over_tokens_without_a_successor() -> None:
    student, labels = logits(1).requires_grad_(), torch.tensor([3, 0, -1, 10, -1])
    wanted = functional.cross_entropy(student, labels, ignore_index=-1, reduction="sum")
    assert_cost(cross_entropy(student.detach(), labels), wanted, student)


def test_the_relative_error_counts_every_state_alike() -> None:
    teacher = torch.tensor([[100.0, 0.0], [0.0, 1.0]])
    student = torch.tensor([[110.0, 0.0], [0.0, 0.5]])
    assert relative_error(student, teacher).tolist() == pytest.approx([0.01, 0.25])
