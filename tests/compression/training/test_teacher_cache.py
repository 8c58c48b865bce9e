"""The teacher's largest logits on disk: when they are kept, when they are read, and that training cannot tell."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.students import Recorder, checkpoints_of, student_of, windows_of_text
from workers.compression.training.distillation import distil
from workers.compression.training.losses import top_logits
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.teacher_cache import TeacherCache

WINDOWS, LENGTH = 6, 12
SETTINGS = DistillationSettings(
    tokens=3 * WINDOWS * LENGTH, batch_size=4, learning_rate=3e-3, interval=2, teacher_top_k=8
)


def text() -> Tensor:
    return windows_of_text(WINDOWS, LENGTH)


@contextmanager
def asked(teacher: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The windows that the teacher reads meanwhile."""
    found: list[Tensor] = []
    hook = teacher.model.embed_tokens.register_forward_hook(lambda module, ids, output: found.extend(ids[0]))
    yield found
    hook.remove()


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    return all(torch.equal(each, other.get_parameter(name)) for name, each in one.named_parameters())


def test_the_teacher_reads_every_window_once(teacher: PreTrainedModel, source: Path, tmp_path: Path) -> None:
    with asked(teacher) as windows:
        distil(teacher, student_of(source), text(), SETTINGS, teacher_cache=tmp_path)
    assert sorted(each.tolist() for each in windows) == sorted(text().tolist())


@pytest.mark.parametrize("change", [{"tokens": WINDOWS * LENGTH}, {"teacher_top_k": 0}, {"hidden_weight": 1.0}])
def test_nothing_is_kept_where_it_would_not_be_read(
    teacher: PreTrainedModel, source: Path, tmp_path: Path, change: dict[str, float]
) -> None:
    distil(teacher, student_of(source), text(), replace(SETTINGS, **change), teacher_cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_with_every_logit_kept_the_training_is_the_exact_one(
    teacher: PreTrainedModel, source: Path, tmp_path: Path
) -> None:
    exact = distil(teacher, student_of(source), text(), SETTINGS)
    everything = replace(SETTINGS, teacher_top_k=96)
    cached = distil(teacher, student_of(source), text(), everything, teacher_cache=tmp_path)
    assert cached.losses == pytest.approx(exact.losses, rel=1e-4)


@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_training_ends_with_the_same_weights_with_and_without_its_cache(
    teacher: PreTrainedModel, source: Path, tmp_path: Path, lost: bool
) -> None:
    whole, again = student_of(source), student_of(source)
    first, *_ = checkpoints_of(teacher, whole, text(), SETTINGS, teacher_cache=tmp_path / "cache")
    again_at = tmp_path / ("another" if lost else "cache")
    distil(teacher, again, text(), SETTINGS, teacher_cache=again_at, observer=Recorder(first))
    assert same_weights(whole, again)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    cache, window = TeacherCache(tmp_path, 8, 1.0), text()[0]
    top = top_logits(torch.randn(LENGTH, 96, generator=torch.Generator().manual_seed(1)), 8, 1.0)
    cache.write(window, top)
    found = cache.read(window)
    assert found is not None
    for kept, written in ((found.values, top.values), (found.places, top.places), (found.tail, top.tail)):
        assert torch.equal(kept, written)


@pytest.mark.parametrize("other", [TeacherCache(Path(), 9, 1.0), TeacherCache(Path(), 8, 2.0)])
def test_other_settings_find_nothing(tmp_path: Path, other: TeacherCache) -> None:
    TeacherCache(tmp_path, 8, 1.0).write(text()[0], top_logits(torch.zeros(LENGTH, 96), 8, 1.0))
    assert replace(other, directory=tmp_path).read(text()[0]) is None


def test_a_damaged_file_counts_as_missing(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, 8, 1.0)
    cache.write(text()[0], top_logits(torch.zeros(LENGTH, 96), 8, 1.0))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert cache.read(text()[0]) is None
    file.write_bytes(b"")
    assert cache.read(text()[0]) is None
