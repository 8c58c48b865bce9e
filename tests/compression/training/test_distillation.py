"""Training a student: what a step does, going on after an interruption, and going back after a divergence."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tests.support.students import Recorder, checkpoints_of, student_of, windows_of_text
from workers.compression.training import split
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import OVERDUE, RESTARTS, Diverged, Observer
from workers.compression.training.objective import DistillationObjective
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.stability import DivergenceMonitor

LENGTH = 12
SETTINGS = DistillationSettings(
    tokens=11 * 4 * LENGTH, batch_size=4, micro_batch_size=2, learning_rate=3e-3, interval=3
)


def text(windows: int = 10) -> Tensor:
    return windows_of_text(windows, LENGTH)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters()}


def assert_same(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    assert all(torch.equal(each, weights(expected)[name]) for name, each in weights(found).items())


def one_step(teacher: PreTrainedModel, student: PreTrainedModel, settings: DistillationSettings) -> float:
    return distil(teacher, student, text(4), settings).losses[0]


def test_a_step_is_the_naive_loop_s(teacher: PreTrainedModel, source: Path) -> None:
    settings = DistillationSettings(
        tokens=4 * LENGTH, micro_batch_size=2, learning_rate=1e-2, warmup_ratio=0.0, max_gradient_norm=0.1
    )
    ours, naive = student_of(source), student_of(source).requires_grad_(True)
    loss = one_step(teacher, ours, settings)
    logits, wanted = naive(text(4)).logits.flatten(0, 1), teacher(text(4)).logits.flatten(0, 1)
    expected = functional.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean")
    expected.backward()
    torch.nn.utils.clip_grad_norm_(naive.parameters(), 0.1)
    torch.optim.AdamW(naive.parameters(), lr=1e-2, betas=settings.betas, weight_decay=0).step()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, each in weights(ours).items():
        torch.testing.assert_close(each, weights(naive)[name], rtol=1e-3, atol=1e-5)


def test_the_text_itself_and_the_last_states_count_as_much_as_asked(teacher: PreTrainedModel, source: Path) -> None:
    settings = DistillationSettings(tokens=4 * LENGTH, batch_size=4, temperature=2.0)
    student, ids = student_of(source), text(4)
    logits = student(ids).logits
    of_text = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    found, wanted = split.states(student, ids), split.states(teacher, ids)
    error = ((found - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()
    plain = one_step(teacher, student_of(source), settings)
    both = one_step(teacher, student_of(source), replace(settings, cross_entropy_weight=0.5, hidden_weight=3.0))
    assert both == pytest.approx(plain + 0.5 * of_text.item() + 3 * error.item(), rel=1e-5)


def test_the_last_states_alone_can_be_followed(teacher: PreTrainedModel, source: Path) -> None:
    student, ids = student_of(source), text()
    wanted = split.states(teacher, ids)

    def error() -> float:
        return ((split.states(student, ids) - wanted).square().sum() / wanted.square().sum()).item()

    before = error()
    distil(teacher, student, ids, replace(SETTINGS, hidden_weight=100.0))
    assert error() < 0.8 * before


class TooSmall:
    """A device whose memory holds so many sequences at a time; it runs out in the middle of a backward pass."""

    def __init__(self, sequences: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried: list[int] = []
        backward = DistillationObjective.backward

        def limited(objective: DistillationObjective, ids: Tensor) -> Tensor:
            self.tried.append(len(ids))
            loss = backward(objective, ids)
            if len(ids) > sequences:
                raise torch.OutOfMemoryError("no room")
            return loss

        monkeypatch.setattr(DistillationObjective, "backward", limited)


def test_a_step_that_does_not_fit_is_taken_again_with_fewer_sequences_at_a_time(
    teacher: PreTrainedModel, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, micro_batch_size=4)
    expected, found = student_of(source), student_of(source)
    distil(teacher, expected, text(), replace(settings, micro_batch_size=1))
    device = TooSmall(1, monkeypatch)
    distil(teacher, found, text(), settings)
    assert device.tried == [4, 2, *[1] * 44]
    assert_same(found, expected)


def test_a_sequence_that_does_not_fit_alone_ends_the_training(
    teacher: PreTrainedModel, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TooSmall(0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        distil(teacher, student_of(source), text(), SETTINGS)


def test_logits_made_in_slices_are_the_same_training(
    teacher: PreTrainedModel, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sliced = student_of(source), student_of(source)
    distil(teacher, whole, text(), SETTINGS)
    monkeypatch.setattr(split, "LOGITS", 5 * 96)
    monkeypatch.setattr("workers.compression.training.objective.CPU_LOGITS", 2 * 96)
    distil(teacher, sliced, text(), SETTINGS)
    for name, each in weights(sliced).items():
        torch.testing.assert_close(each, weights(whole)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["without_first_block", "factored"])
def test_activations_that_are_not_kept_change_nothing(
    teacher: PreTrainedModel, source: Path, kind: str, compute: torch.dtype | None
) -> None:
    kept, again = student_of(source, kind), student_of(source, kind)
    distil(teacher, kept, text(), SETTINGS, compute_dtype=compute)
    distil(teacher, again, text(), replace(SETTINGS, gradient_checkpointing=True), compute_dtype=compute)
    assert_same(again, kept)


def test_activations_of_blocks_are_made_a_second_time(source: Path) -> None:
    student = student_of(source).requires_grad_(True)
    calls: list[int] = []
    student.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    with split.recomputed(student):
        entering = split.states(student, text())
    entering.sum().backward()
    assert len(calls) == 2


def test_in_bfloat16_the_weights_stay_float32_and_learn_the_same(teacher: PreTrainedModel, source: Path) -> None:
    single, half = student_of(source), student_of(source)
    expected = distil(teacher, single, text(), SETTINGS)
    found = distil(teacher, half, text(), SETTINGS, compute_dtype=torch.bfloat16)
    assert {each.dtype for each in half.parameters()} == {torch.float32}
    assert found.losses != expected.losses
    assert found.losses == pytest.approx(expected.losses, rel=0.05)


def test_micro_batches_add_up_to_the_step(teacher: PreTrainedModel, source: Path) -> None:
    settings = DistillationSettings(tokens=4 * LENGTH, batch_size=4, learning_rate=1e-2, warmup_ratio=0.0)
    losses = [one_step(teacher, student_of(source), replace(settings, micro_batch_size=size)) for size in (1, 3, 4)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_student_learns(teacher: PreTrainedModel, source: Path) -> None:
    last = distil(teacher, student_of(source), text(), replace(SETTINGS, tokens=60 * 4 * LENGTH))
    assert sum(last.losses[-5:]) < 0.7 * sum(last.losses[:5])


def test_every_window_is_seen_once_before_any_is_seen_again(teacher: PreTrainedModel, source: Path) -> None:
    student, seen = student_of(source), []
    student.model.embed_tokens.register_forward_hook(lambda module, ids, output: seen.extend(ids[0].tolist()))
    distil(teacher, student, text(10), replace(SETTINGS, tokens=5 * 4 * LENGTH))
    first, second = seen[:10], seen[10:20]
    assert sorted(first) == sorted(second) == sorted(text(10).tolist())
    assert first != second


def test_another_seed_is_another_order(teacher: PreTrainedModel, source: Path) -> None:
    settings = replace(SETTINGS, tokens=4 * LENGTH)
    losses = [distil(teacher, student_of(source), text(), replace(settings, seed=seed)).losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_largest_seed_of_a_recipe_is_one(teacher: PreTrainedModel, source: Path) -> None:
    settings = replace(SETTINGS, tokens=4 * LENGTH, seed=2**63 - 1)
    assert distil(teacher, student_of(source), text(), settings).step == 1


def test_there_is_a_checkpoint_every_interval_and_after_the_last_step(teacher: PreTrainedModel, source: Path) -> None:
    found = checkpoints_of(teacher, student_of(source), text(), SETTINGS)
    assert [(each.step, each.steps, each.tokens) for each in found] == [
        (step, 11, step * 4 * LENGTH) for step in (3, 6, 9, 11)
    ]
    assert [len(each.losses) for each in found] == [3, 6, 9, 11]


class Copying(Recorder):
    """Also remembers copies of the tensors of each checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[dict[str, Tensor]] = []

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        self.copies.append({name: tensor.clone() for name, tensor in checkpoint.tensors.items()})
        return super().save(checkpoint)


def test_a_checkpoint_stays_what_it_was(teacher: PreTrainedModel, source: Path) -> None:
    observer = Copying()
    distil(teacher, student_of(source), text(), SETTINGS, observer=observer)
    for checkpoint, copies in zip(observer.checkpoints, observer.copies, strict=True):
        assert all(torch.equal(tensor, copies[name]) for name, tensor in checkpoint.tensors.items())


def test_a_run_continues_with_what_the_observer_returns_for_a_checkpoint(
    teacher: PreTrainedModel, source: Path
) -> None:
    class Emptying(Observer):
        def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
            return replace(checkpoint, tensors={})

    assert distil(teacher, student_of(source), text(), SETTINGS, observer=Emptying()).tensors == {}


def test_the_observer_hears_of_each_step(teacher: PreTrainedModel, source: Path) -> None:
    recorder = Recorder()
    last = distil(teacher, student_of(source), text(), SETTINGS, observer=recorder)
    assert recorder.steps == list(enumerate(last.losses, 1))


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["without_first_block", "factored"])
def test_a_resumed_training_ends_with_the_same_weights(
    teacher: PreTrainedModel, source: Path, kind: str, compute: torch.dtype | None
) -> None:
    whole = student_of(source, kind)
    checkpoints = checkpoints_of(teacher, whole, text(), SETTINGS, compute_dtype=compute)
    for checkpoint in checkpoints:
        again = student_of(source, kind)
        distil(teacher, again, text(), SETTINGS, compute_dtype=compute, observer=Recorder(checkpoint))
        assert_same(again, whole)


def test_a_trained_student_keeps_no_gradients(teacher: PreTrainedModel, source: Path) -> None:
    student = student_of(source)
    distil(teacher, student, text(), SETTINGS)
    assert not any(each.requires_grad or each.grad is not None for each in student.parameters())


def test_tokens_are_what_is_spent() -> None:
    assert DistillationSettings(tokens=1000, batch_size=4).steps(length=50) == 5
    assert DistillationSettings(tokens=1001, batch_size=4).steps(length=50) == 6


def test_weight_decay_spares_norms(teacher: PreTrainedModel, source: Path) -> None:
    settings = DistillationSettings(tokens=4 * LENGTH, batch_size=4, learning_rate=1e-4, warmup_ratio=0.0)
    left, decayed = student_of(source), student_of(source)
    one_step(teacher, left, settings)
    one_step(teacher, decayed, replace(settings, weight_decay=10.0))
    moved = {name for name, each in weights(decayed).items() if not torch.equal(each, weights(left)[name])}
    assert moved == {name for name, each in left.named_parameters() if each.ndim > 1}


def restarting(
    teacher: PreTrainedModel, student: PreTrainedModel, resumed: TrainingCheckpoint | None = None
) -> list[TrainingCheckpoint]:
    """At a rate at which the loss explodes and at half of which it falls."""
    settings = replace(SETTINGS, learning_rate=0.8, warmup_ratio=0.0, interval=2, tokens=24 * 4 * LENGTH)
    return checkpoints_of(teacher, student, text(), settings, resumed=resumed)


def test_a_training_that_diverges_goes_back_and_on_at_a_lower_rate(teacher: PreTrainedModel, source: Path) -> None:
    checkpoints = restarting(teacher, student_of(source))
    assert checkpoints[-1].step == len(checkpoints[-1].losses) == 24
    assert 0 < checkpoints[-1].restarts <= RESTARTS
    assert all(math.isfinite(loss) for loss in checkpoints[-1].losses)


def test_a_checkpoint_waits_while_the_loss_is_high_but_not_for_ever(teacher: PreTrainedModel, source: Path) -> None:
    found = [each.step for each in restarting(teacher, student_of(source))]
    waited = max(after - before for before, after in pairwise(found))
    assert 2 < waited <= 2 * OVERDUE


def test_resumed_behind_a_restart_it_ends_with_the_same_weights(teacher: PreTrainedModel, source: Path) -> None:
    whole = student_of(source)
    checkpoints = restarting(teacher, whole)
    for checkpoint in checkpoints:
        again = student_of(source)
        *_, last = [checkpoint, *restarting(teacher, again, checkpoint)]
        assert last.losses == checkpoints[-1].losses
        assert last.restarts == checkpoints[-1].restarts
        assert_same(again, whole)


def test_it_is_given_up_where_no_rate_helps(teacher: PreTrainedModel, source: Path) -> None:
    student = student_of(source)
    with torch.no_grad():
        student.model.norm.weight[0] = math.nan
    with pytest.raises(Diverged, match="diverged 5 times near step 0 of 11"):
        distil(teacher, student, text(), SETTINGS)


def test_noise_is_no_divergence() -> None:
    noise = torch.Generator().manual_seed(0)
    losses = (1 + torch.rand(500, generator=noise)).tolist()
    monitor = DivergenceMonitor()
    assert not any(monitor.diverged(loss) for loss in [3.0, 2.5, *losses, 9.0, *losses])


def test_a_loss_that_stays_high_is_a_divergence() -> None:
    monitor = DivergenceMonitor([1.0] * 50)
    assert any(monitor.diverged(6.0) for _ in range(20))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_divergence_at_once(loss: float) -> None:
    assert DivergenceMonitor([1.0], ratio=math.inf).diverged(loss)


def test_with_an_infinite_ratio_no_finite_loss_is_a_divergence() -> None:
    monitor = DivergenceMonitor([1.0] * 50, ratio=math.inf)
    assert not any(monitor.diverged(1e6) for _ in range(20))
    assert monitor.settled


class Asked(dict[str, Tensor]):
    """Tensors that note which of them are read."""

    def __init__(self, *names: str) -> None:
        super().__init__({name: torch.zeros(1) for name in names})
        self.names: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.names.append(name)
        return super().__getitem__(name)

    def items(self) -> NoReturn:
        raise AssertionError("all tensors would be read")


def test_what_is_trained_is_read_without_the_moments() -> None:
    tensors = Asked("trained:a.b", "exp_avg:a.b", "exp_avg_sq:a.b", "trained:c")
    assert list(TrainingCheckpoint(1, 2, 3, (), 0, tensors).trained) == ["a.b", "c"]
    assert tensors.names == ["trained:a.b", "trained:c"]
