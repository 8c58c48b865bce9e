"""Estimate what rounding each matrix costs the model, for every code that it may take.

    for costs in code_costs(model, ids, sensitivities, {"model.embed_tokens": [CODES["q8_0"], CODES["iq4_nl"]]}):
        costs["model.embed_tokens"]["q8_0"]        # nats per token

A rounding error costs ½ E‖K(W − Ŵ)x‖², as `sensitivity` says. With error feedback an error in column k counts R_kk²,
where R is the Cholesky factor of the inputs' second moments that `rounding` uses. So a sample of rows is rounded
without feedback, and its errors are weighed by R_kk². The result is within a tenth of what `rounding` leaves, in a
fraction of its time.

Promise: one block's weights are in memory at a time; hidden states are kept in a temporary directory.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modelpress.spec.codes import Code
from modelpress.spec.inventory import Site
from workers.compression.drawing import evenly_spread
from workers.compression.math.fitting import damped, matrix_of
from workers.compression.math.scales import (
    Levels,
    dtype_of_units,
    in_steps,
    search_group_unit,
    search_scale,
    search_unit,
)
from workers.compression.math.sensitivity import Sensitivity
from workers.compression.models.edited import EditedModel
from workers.compression.steps.two_streams import StoredStates, TwoStreams, embedded

TOKENS = 4096
"""Upper bound of calibration tokens that the inputs' second moments are measured on."""

ROWS = 512
"""Rows of a matrix that are rounded, at the most; they stand for the others."""

Costs = dict[str, dict[str, float]]


@torch.no_grad()
def code_costs(
    model: EditedModel,
    ids: Tensor,
    sensitivities: Mapping[str, Sensitivity],
    codes: Mapping[str, Sequence[Code]],
) -> Iterator[Costs]:
    """Yield {site: {code's name: rise of the divergence in nats per token}}, one part of the model after another.

    Args:
        model: the model whose matrices are to be rounded.
        ids: calibration tokens [sequences, length].
        sensitivities: those of the model's sites; a site that is missing counts its outputs alike.
        codes: the codes that each site may take, by its name.
    """
    inventory = model.inventory
    yield _of_table(model, inventory.embedding, None, sensitivities, codes)
    some = evenly_spread(ids, max(1, TOKENS // ids.shape[1]))
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        states = StoredStates(Path(scratch) / "states", embedded(model, some), model.device)
        streams = TwoStreams(model, None, states, Path(scratch), alike=False)
        for index in model.kept:
            yield _of_block(streams, index, sensitivities, codes)
        if inventory.head is not None:
            moments = streams.observe_head()
            yield _of_table(model, inventory.head, moments.inputs / moments.tokens, sensitivities, codes)


def _of_block(
    streams: TwoStreams, index: int, sensitivities: Mapping[str, Sensitivity], codes: Mapping[str, Sequence[Code]]
) -> Costs:
    """Return the costs of a block's sites, and let the states pass through it."""
    prefix = f"{streams.model.inventory.block_prefix}.{index}."
    names = {site.removeprefix(prefix): site for site in codes if site.startswith(prefix) and codes[site]}
    found: Costs = {}
    with streams.model.block(index) as block:
        moments = streams.observe(block, index, list(names))
        for name, site in names.items():
            seen = moments.take(name)
            weight = matrix_of(block.get_submodule(name)).float()
            second = seen.inputs.to(weight.device) / max(seen.tokens, 1)
            found[site] = _costs(weight, second, sensitivities.get(site), codes[site])
        streams.advance_compressed(block, index, changed=False)
    return found


def _of_table(
    model: EditedModel,
    site: Site,
    second: Tensor | None,
    sensitivities: Mapping[str, Sensitivity],
    codes: Mapping[str, Sequence[Code]],
) -> Costs:
    """Return the costs of the embedding or the head; `second` is the measured moment of the inputs, if there is one."""
    if not codes.get(site.name):
        return {}
    name, sensitivity = f"{site.name}.weight", sensitivities.get(site.name)
    weight = model.read([name])[name].float()
    if second is None:
        second = torch.eye(site.in_features) if sensitivity is None else sensitivity.inputs
    moment = torch.eye(site.in_features) if second is None else second
    return {site.name: _costs(weight, moment.to(weight), sensitivity, codes[site.name])}


def _costs(weight: Tensor, second: Tensor, sensitivity: Sensitivity | None, codes: Sequence[Code]) -> dict[str, float]:
    """Return the cost of each code for a weight [out, in] whose inputs have the second moment [in, in]."""
    squared = weight.new_ones(len(weight)) if sensitivity is None else sensitivity.outputs.to(weight).square()
    chosen = torch.linspace(0, len(weight) - 1, min(ROWS, len(weight)), device=weight.device).long()
    rows, squared_of_rows = weight[chosen], squared[chosen]
    share = float(squared.sum(dtype=torch.float64) / squared_of_rows.sum(dtype=torch.float64))
    weights = torch.linalg.cholesky(damped(second)[0]).diagonal().square().to(weight)
    found = {}
    for code in codes:
        lost = (rows - nearest(code, rows, weights)).square_() @ weights
        found[code.name] = 0.5 * share * float((lost * squared_of_rows).sum(dtype=torch.float64))
    return found


def nearest(code: Code, weight: Tensor, energies: Tensor) -> Tensor:
    """Return the weight [out, in] rounded to the code, each weight to its nearest level.

    The scales are those with the least error if input i counts `energies[i]`.
    """
    rows, columns = weight.shape
    levels, group = Levels(code, weight.device), code.group or columns
    groups, h = weight.view(rows, -1, group), energies.view(-1, group)
    if code.scales is None:
        steps = search_group_unit(levels, groups, h, dtype_of_units(code, torch.float16))
    else:
        blocks = groups.reshape(-1, code.groups, group)
        h = h.view(1, -1, code.groups, group).expand(rows, -1, -1, -1).reshape(blocks.shape)
        units = search_unit(levels, blocks, h, code.scales, torch.float16).repeat_interleave(code.groups)
        scales = search_scale(levels, blocks.flatten(0, 1), h.flatten(0, 1), code.scales, units)
        steps = (scales * units).view(rows, -1)
    return (levels.nearest(in_steps(groups, steps.unsqueeze(-1))) * steps.unsqueeze(-1)).view(rows, columns)
