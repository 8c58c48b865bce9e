"""What of a student is trained, and the trained tensors as one more part of the package."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelpress.spec.training import Trainable
from tests.support.models import MODELS, sampled, tiny_model, token_ids
from tests.support.packages import write_package
from tests.support.students import DOWN, STUDENTS, TABLE, UP, edited, opened
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.training.distillation import distil
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.trained import trainable_parameters, trained_part

SETTINGS = DistillationSettings(tokens=3 * 2 * 12, batch_size=2, learning_rate=1e-2, cross_entropy_weight=1.0)


def check_package(tmp_path: Path, name: str, kind: str) -> None:
    original = opened(tmp_path / "source", name)
    compressed, parts = edited(original, kind), STUDENTS[kind](original)
    student = compressed.whole()
    before = student(token_ids()).logits
    last = distil(original.whole(), student, token_ids(), SETTINGS)
    parts.append(trained_part(compressed, last.trained))
    package = write_package(tmp_path / "source", parts, tmp_path / "package")
    logits = student(token_ids()).logits
    assert not torch.allclose(logits, before, atol=1e-3)
    for again in (StreamedModel.open(package.directory), EditedModel(original, parts)):
        # Not bit for bit: how products are rounded depends on where in memory the matrices lie.
        torch.testing.assert_close(again.whole()(token_ids()).logits, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_package_with_the_trained_part_computes_what_the_student_does(tmp_path: Path, kind: str) -> None:
    check_package(tmp_path, "llama-tied", kind)


@pytest.mark.parametrize("name", sampled(MODELS))
def test_every_architecture_keeps_what_was_trained(tmp_path: Path, name: str) -> None:
    check_package(tmp_path, name, "without_first_block")


def test_trained_tensors_are_stored_in_the_dtype_of_the_original(tmp_path: Path) -> None:
    copy.deepcopy(tiny_model("llama-tied")).bfloat16().save_pretrained(tmp_path / "source")
    original = opened(tmp_path / "source")
    student = edited(original, "narrowed").whole()
    last = distil(original.whole(), student, token_ids(), SETTINGS)
    parts = STUDENTS["narrowed"](original)
    parts.append(trained_part(EditedModel(original, parts), last.trained))
    package = write_package(tmp_path / "source", parts, tmp_path / "package")
    stored = load_file(package.directory / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    logits = StreamedModel.open(package.directory).whole()(token_ids()).logits
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(parameter.bfloat16())
    assert torch.equal(logits, student(token_ids()).logits)


def test_tensors_are_named_as_in_the_original(tmp_path: Path) -> None:
    compressed = edited(opened(tmp_path / "source"), "without_first_block")
    part = trained_part(compressed, trainable_parameters(compressed.whole(), "all"))
    assert part.name == "distillation"
    assert "model.layers.1.mlp.up_proj.weight" in part.tensors
    assert not any(name.startswith("model.layers.0.") for name in part.tensors)


def test_a_shared_table_is_kept_once(tmp_path: Path) -> None:
    compressed = edited(opened(tmp_path / "source"), "plain")
    part = trained_part(compressed, trainable_parameters(compressed.whole(), "all"))
    assert f"{TABLE}.weight" in part.tensors
    assert "lm_head.weight" not in part.tensors


def test_the_factors_are_those_of_compact_layers(tmp_path: Path) -> None:
    student = edited(opened(tmp_path / "source"), "factored").whole()
    up, down = (name.replace("layers.1", "layers.0") for name in (UP, DOWN))
    assert set(trainable_parameters(student, "factors")) == {
        *(f"{up}.{name}" for name in ("basis", "mixing")),
        *(f"{down}.{name}" for name in ("left", "right")),
        *(f"{TABLE}.{name}" for name in ("codes", "mixing")),
    }


def test_a_head_that_stays_whole_is_no_factor(tmp_path: Path) -> None:
    student = edited(opened(tmp_path / "source"), "untied").whole()
    assert set(trainable_parameters(student, "factors")) == {f"{TABLE}.codes", f"{TABLE}.pairs"}


def test_norms_include_every_bias(tmp_path: Path) -> None:
    chosen = trainable_parameters(edited(opened(tmp_path / "source", "qwen2"), "plain").whole(), "norms")
    assert {"model.norm.weight", "model.layers.0.self_attn.q_proj.bias"} <= set(chosen)
    assert not any("proj.weight" in name for name in chosen)


def test_factors_of_a_plain_student_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no factors"):
        trainable_parameters(opened(tmp_path / "source").whole(), "factors")


@pytest.mark.parametrize("trainable", ["factors", "norms"])
def test_what_is_not_trained_does_not_move(tmp_path: Path, trainable: Trainable) -> None:
    original = opened(tmp_path / "source")
    student = edited(original, "factored").whole()
    before = {name: each.detach().clone() for name, each in student.named_parameters()}
    settings = DistillationSettings(tokens=24, batch_size=2, learning_rate=1e-2, trainable=trainable)
    distil(original.whole(), student, token_ids(), settings)
    moved = {name for name, each in student.named_parameters() if not torch.equal(each, before[name])}
    assert moved == set(trainable_parameters(student, trainable))
