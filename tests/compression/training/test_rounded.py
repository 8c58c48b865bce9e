"""What a rounded model trains, and that its part computes what the trained student computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelpress.spec.codes import CODES, Code
from modelpress.spec.inventory import Site
from tests.support.models import token_ids
from tests.support.students import opened, without_first_block
from workers.compression.encoded import Encoded
from workers.compression.math.rounding import rounded
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.training.distillation import distil
from workers.compression.training.rounded import UNITS, RelativeUnits, rounded_student, tuned_part
from workers.compression.training.settings import DistillationSettings

SETTINGS = DistillationSettings(tokens=12 * 4 * 24, batch_size=4, learning_rate=1e-3)


def rounded_part(model: StreamedModel, code: str = "int4_g32") -> CompressedPart:
    """Return every matrix in a code, or in int8 where the code does not fit its rows."""
    tensors: dict[str, Tensor] = {}
    encodings: dict[str, str] = {}
    for site in (model.inventory.embedding, *model.inventory.sites):
        name, chosen = f"{site.name}.weight", CODES[code] if CODES[code].fits(site.in_features) else CODES["int8"]
        tensors |= in_code(model, site, chosen).tensors(name)
        encodings[name] = chosen.name
    return CompressedPart("rounded", tensors=tensors, encodings=encodings)


def in_code(model: StreamedModel, site: Site, code: Code) -> Encoded:
    weight = model.read([f"{site.name}.weight"])[f"{site.name}.weight"].float()
    weight = weight.T if site.layout == "conv1d" else weight
    return rounded(code, weight, torch.eye(weight.shape[1]))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "opt", "phi3", "qwen3_moe"])
def test_the_trained_part_computes_what_the_trained_student_does(tmp_path: Path, name: str) -> None:
    model, windows = opened(tmp_path / "source", name), token_ids(16, 24)
    parts = [rounded_part(model)]
    edited = EditedModel(model, parts)
    student = rounded_student(edited)
    before = student(token_ids()).logits
    torch.testing.assert_close(before, edited.whole()(token_ids()).logits, rtol=1e-4, atol=1e-5)
    last = distil(model.whole(), student, windows, SETTINGS)
    assert last.losses[-1] < last.losses[0]
    tuned = EditedModel(model, [*parts, tuned_part(edited, student, last.trained)])
    assert tuned.overlay.codes == edited.overlay.codes
    after = tuned.whole()(token_ids()).logits
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, student(token_ids()).logits, rtol=1e-4, atol=1e-5)


def test_levels_and_tables_stay_as_they_were_rounded(tmp_path: Path) -> None:
    model = opened(tmp_path / "source")
    part = rounded_part(model)
    edited = EditedModel(model, [part])
    student = rounded_student(edited)
    tuned = tuned_part(edited, student, distil(model.whole(), student, token_ids(8, 24), SETTINGS).trained)
    assert not any(name.startswith("model.embed_tokens") for name in tuned.tensors)
    for name, code in tuned.encodings.items():
        before, after = (Encoded.read(each.tensors, name, CODES[code]) for each in (part, tuned))
        assert torch.equal(before.levels, after.levels) and not torch.equal(before.units, after.units)


def test_units_that_are_powers_of_two_are_not_trained(tmp_path: Path) -> None:
    model = opened(tmp_path / "source")
    student = rounded_student(EditedModel(model, [rounded_part(model, "mxfp4")]))
    trained = {name.removesuffix(UNITS).rpartition(".")[2] for name, _ in student.named_parameters() if UNITS in name}
    assert trained == {"down_proj"}


def test_remaining_blocks_are_tuned_under_their_own_names(tmp_path: Path) -> None:
    model = opened(tmp_path / "source")
    edited = EditedModel(model, [*without_first_block(model), rounded_part(model)])
    student = rounded_student(edited)
    tuned = tuned_part(edited, student, dict(student.named_parameters()))
    assert {name.split(".")[2] for name in tuned.encodings} == {"1"}


@pytest.mark.parametrize("code", ["q8_0", "iq4_nl", "q3_k", "int8"])
def test_the_gradient_of_units_is_that_of_the_weights(code: str) -> None:
    torch.manual_seed(0)
    encoded = rounded(CODES[code], torch.randn(4, 256), torch.eye(256))
    encoded = replace(encoded, units=encoded.units.float())
    relative = torch.ones_like(encoded.units, requires_grad=True)
    weight, direction = RelativeUnits(encoded, transposed=False)(relative), torch.randn(4, 256)
    assert torch.equal(weight, encoded.decoded())
    weight.backward(direction)
    step = torch.randn_like(relative)
    change = replace(encoded, units=encoded.units * step).decoded()
    assert relative.grad is not None
    assert float((relative.grad * step).sum()) == pytest.approx(float((change * direction).sum()), rel=1e-4)
