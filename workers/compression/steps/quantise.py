"""Round matrices to codes, part by part: the embedding, each remaining block, and an output head of its own.

The hidden states of the rounded model pass through the blocks. A matrix is rounded for the inputs that it has behind
the rounded parts before it; the sites of a block that read the same input are rounded together.

Promise: one block's weights are in memory at a time; hidden states are kept in a temporary directory. The same inputs
give the same bytes, resumed or not.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modelpress.spec.codes import CODES
from modelpress.spec.inventory import Site
from modelpress.spec.steps import Quantise
from workers.compression.encoded import Encoded
from workers.compression.math.fitting import damped, matrix_of
from workers.compression.math.rounding import relative_error, rounded
from workers.compression.math.scales import dtype_of_units
from workers.compression.parts import CompressedPart
from workers.compression.steps.two_streams import StoredStates, TwoStreams, embedded
from workers.compression.steps.work import Work


@torch.no_grad()
def run(step: Quantise, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield the parts of the step after the `finished` ones.

    Each part is applied to `work.model` before the next one is asked for, the finished ones before the first.

    Raises:
        ValueError: if a code does not fit a matrix.
    """
    model = work.model
    reached = len(finished)
    if reached == 0:
        yield _embedding(step, work)
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        states = StoredStates(Path(scratch) / "states", embedded(model, work.ids), model.device)
        streams = TwoStreams(model, None, states, Path(scratch), alike=False)
        for number, index in enumerate(model.kept, start=1):
            if number >= reached:
                with model.block(index) as block:
                    part = _block(step, work, streams, block, index)
                yield part
            with model.block(index) as block:
                streams.advance_compressed(block, index, changed=True)
        if model.inventory.head is not None and reached < len(model.kept) + 2:
            yield _head(step, work, streams, model.inventory.head)


def _embedding(step: Quantise, work: Work) -> CompressedPart:
    """Return the part of the rounded embedding, empty if the step leaves it as it is.

    An error of a row costs what the sensitivity of the table says, which includes a tied head's inputs.
    """
    site = work.model.inventory.embedding
    found = work.sensitivities.get(site.name)
    second = torch.eye(site.in_features) if found is None or found.inputs is None else found.inputs
    return _table(step, work, site, second)


def _head(step: Quantise, work: Work, streams: TwoStreams, site: Site) -> CompressedPart:
    """Return the part of the rounded output head, empty if the step leaves it as it is."""
    if site.name not in step.codes:
        return CompressedPart(site.name)
    moments = streams.observe_head()
    return _table(step, work, site, moments.inputs / moments.tokens)


def _table(step: Quantise, work: Work, site: Site, second: Tensor) -> CompressedPart:
    """Return the part of a rounded table whose rows are judged by the second moment [width, width]."""
    if site.name not in step.codes:
        return CompressedPart(site.name)
    name = f"{site.name}.weight"
    return _part(site.name, step, _rounded(step, work, {site.name: work.model.read([name])[name]}, second))


def _block(step: Quantise, work: Work, streams: TwoStreams, block: nn.Module, index: int) -> CompressedPart:
    """Return the part of a block with the sites rounded that the step names."""
    whole = f"{streams.model.inventory.block_prefix}.{index}"
    names = [name.removeprefix(f"{whole}.") for name in step.codes if name.startswith(f"{whole}.")]
    moments = streams.observe(block, index, names)
    alike: dict[tuple[str, str], list[str]] = {}
    for name in names:
        alike.setdefault((moments.leader(name), step.codes[f"{whole}.{name}"]), []).append(name)
    found: list[_Rounded] = []
    for (leader, _), sharing in alike.items():
        seen = moments.take(leader)
        weights = {f"{whole}.{name}": matrix_of(block.get_submodule(name)) for name in sharing}
        found += _rounded(step, work, weights, seen.inputs / max(seen.tokens, 1))
    return _part(whole, step, found)


@dataclass(frozen=True)
class _Rounded:
    """The rounded matrix of a site, and the relative norm of the error of its outputs."""

    site: str
    matrix: Encoded
    error: float


def _rounded(step: Quantise, work: Work, weights: Mapping[str, Tensor], second: Tensor) -> list[_Rounded]:
    """Round the weights [out, in] of sites that share their inputs and their code, given the inputs' second moment."""
    first = next(iter(weights))
    code = CODES[step.codes[first]]
    stacked = torch.cat(list(weights.values()))
    encoded = rounded(code, stacked, damped(second)[0], units=_dtype_of_units(step, work, first))
    second = second.to(stacked.device)
    parts = encoded.split([len(weight) for weight in weights.values()])
    return [
        _Rounded(site, part, relative_error(weight, part.decoded(), second))
        for (site, weight), part in zip(weights.items(), parts, strict=True)
    ]


def _dtype_of_units(step: Quantise, work: Work, site: str) -> torch.dtype:
    """Return the dtype in which the step's format stores units: the original's where it is one of 16 bits."""
    code = CODES[step.codes[site]]
    if code.powers or step.format == "gguf":
        return dtype_of_units(code, torch.float16)
    original = work.original.overlay.original
    stored = original.names.get(f"{site}.weight") or original.names[f"{work.original.inventory.embedding.name}.weight"]
    return torch.bfloat16 if original.tensors[stored].dtype == "BF16" else torch.float16


def _part(name: str, step: Quantise, found: Sequence[_Rounded]) -> CompressedPart:
    """Return the part `name` with rounded matrices."""
    return CompressedPart(
        name,
        tensors={
            key: tensor.cpu() for each in found for key, tensor in each.matrix.tensors(f"{each.site}.weight").items()
        },
        errors={each.site: each.error for each in found},
        encodings={f"{each.site}.weight": step.codes[each.site] for each in found},
    )
