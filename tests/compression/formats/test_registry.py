"""Every registered format writes what it does not refuse, and refuses the rest in words."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelpress.spec.formats import FORMATS, MAIN, Format
from modelpress.spec.methods import METHODS, Leaves
from tests.support.models import save_tiny_model, token_ids
from tests.support.waiting import PATIENCE_SECONDS
from workers.compression.formats import Writer, writer_of
from workers.compression.formats.verification import Probe
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart

SITES = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "transformer.h.1.mlp.c_fc"}


def overlay_of(name: str, leaves: Leaves, directory: Path) -> Overlay:
    """A tiny model without its first block and, where asked, with one matrix of factors."""
    save_tiny_model(name, directory)
    removal = CompressedPart("removal", {}, {}, {}, removed=(0,))
    if leaves is Leaves.PLAIN:
        return Overlay.open(directory, [removal])
    site = next(site for site in Overlay.open(directory).inventory.sites if site.name == SITES[name])
    generator = torch.Generator().manual_seed(3)
    factors = {
        f"{site.name}.first": torch.randn(4, site.in_features, generator=generator),
        f"{site.name}.second": torch.randn(site.out_features, 4, generator=generator),
    }
    part = CompressedPart("factors", {site.name: {"kind": "low_rank", "rank": 4}}, factors, {})
    return Overlay.open(directory, [removal, part])


def expected_logits(overlay: Overlay) -> Tensor:
    """Return the logits that a written checkpoint should compute."""
    model = EditedModel(StreamedModel.open(overlay.original.directory))
    model.apply(CompressedPart("removal", {}, {}, {}, removed=tuple(overlay.removed)))
    if overlay.is_factored:
        names = [name for name in overlay.tensor_names() if overlay.holder(name) is not None]
        tensors = {name: overlay.tensor(name) for name in names}
        model.apply(CompressedPart("factors", overlay.structures, tensors, {}))
    with torch.no_grad():
        logits: Tensor = model.whole()(token_ids()).logits
    return logits


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_it_writes_what_it_does_not_refuse_and_a_fresh_process_opens_it(form: Format, tmp_path: Path) -> None:
    if form.library is not None and find_spec(form.library) is None:
        pytest.skip(f"{form.library} is not installed")
    writer, probes = writer_of(form.name), []
    for name in SITES:
        for leaves in (Leaves.PLAIN, Leaves.FACTORED):
            overlay = overlay_of(name, leaves, tmp_path / name / leaves / "source")
            destination = tmp_path / name / leaves / form.name
            reason = form.refuses(overlay.inventory, leaves)
            if reason is not None:
                assert " " in reason
                with pytest.raises(Exception):  # noqa: B017 - each says it in its own way
                    writer.write(overlay, destination)
                assert not destination.exists()
                continue
            written = writer.write(overlay, destination)
            assert written.parameters > 0 < written.bytes
            probes.append(Probe(destination, token_ids(), expected_logits(overlay), form.tolerance))
    assert probes
    writer.open_fresh(probes, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_it_has_a_writer_of_its_own_and_says_what_it_is(form: Format) -> None:
    assert isinstance(writer_of(form.name), Writer)
    assert form.title and form.description and form.opened_by


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_the_formats_that_take_what_it_leaves(method: str, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    inventory, leaves = Overlay.open(tmp_path).inventory, METHODS[method].leaves
    taken = {name for name in (MAIN, "dense", "gguf") if FORMATS[name].refuses(inventory, leaves) is None}
    assert taken == ({MAIN, "gguf"} if leaves is Leaves.PLAIN else {MAIN, "dense"})
