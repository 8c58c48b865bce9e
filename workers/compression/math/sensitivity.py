"""Sensitivity of the model's output to errors in each target module, measured by one forward and one backward pass.

The divergence from the original grows, to second order, by ½ E‖K(W − Ŵ)x‖² summed over the modules. Here x are the
module's inputs and KᵀK is the second moment of the gradient at its outputs: the Fisher information, approximated by a
product of its two sides (K-FAC, arXiv 1503.05671). Labels are drawn from the original's own predictions, so the text
provides the contexts and not the labels. Only the diagonal of KᵀK is kept: a few thousand tokens determine no more.

Promise: one block's weights are in memory at a time; the inputs of the blocks wait on a shelf. All is computed on the
model's device; the sensitivities are small, and lie on the CPU.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from modelpress.spec.families import KroneckerFamily
from modelpress.spec.inventory import Site
from modelpress.spec.methods.base import SiteErrors
from workers.compression.drawing import draw_from_rows
from workers.compression.math.fitting import Moments, matrix_of, problem, spectrum
from workers.compression.math.kronecker import WeightedTarget, errors_by_terms
from workers.compression.math.tables import table_spectrum, table_target
from workers.compression.models.protocols import BlockwiseModel
from workers.compression.shelf import Shelf, shelf_for

TOKENS = 8192
"""Upper bound of calibration tokens that are used: a pass with gradients costs as much as three without."""

HEAD_TOKENS = 256
"""Tokens that pass through the head at a time: their logits over the vocabulary are the largest tensor of the pass."""

TEXT_SHARE = 0.4
"""Fraction of a table's row weights that follows the frequencies in the text. A few thousand tokens leave most of the
vocabulary unseen."""

ZIPF_SHARE = 0.4
"""Fraction of a table's row weights that follows Zipf's law. A tokenizer numbers its tokens in the order of merging,
which is roughly their order of frequency in all text. Where single characters have the last numbers, the text holds
them. The remaining fraction is spread evenly over all tokens."""

MOST_FREQUENT = 300
"""Offset of the ranks in Zipf's law, which is also where frequencies begin to fall: the numbers before it are mostly
single bytes."""

TILED = "tile "
"""Prefix of a tile in the name of a tensor that holds the tile's errors."""

SHRINKAGE = 0.02
"""Fraction of the mean squared gradient that is added to every output: one that was silent by chance still counts."""


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of one target module's output to errors. Divergences are in nats per token.

    Attributes:
        spectrum: divergence that leaving out each singular value costs, descending, [min(out, in)].
        outputs: diagonal of K, [out].
        inputs: second moment that replaces a measured one, [in, in]; for the embedding only.
        tiles: for a tile such as '4x16', the divergence that Kronecker sums of 0, 1, 2, … terms cost.
    """

    spectrum: Tensor
    outputs: Tensor
    inputs: Tensor | None = None
    tiles: Mapping[str, Tensor] = field(default_factory=dict)


@torch.enable_grad()
def measure(
    model: BlockwiseModel, ids: Tensor, *, seed: int = 0, tiled: KroneckerFamily | None = None
) -> Iterator[dict[str, Sensitivity]]:
    """Yield sensitivities by module name, one part of the model after another.

    The order is: the head where it has a matrix of its own, the blocks from last to first, then the embedding if it is
    as wide as the blocks.

    Args:
        model: the original model.
        ids: calibration tokens [sequences, length]; up to TOKENS of them are used, evenly spread over the sequences.
        seed: seed of the labels drawn from the model's predictions.
        tiled: Kronecker sums whose errors are measured as well.
    """
    count = max(1, min(len(ids), TOKENS // ids.shape[1]))
    chosen = ids[torch.linspace(0, len(ids) - 1, count).long()]
    with tempfile.TemporaryDirectory(prefix="block-inputs-") as scratch:
        entering = shelf_for(model.device, Path(scratch))
        hidden = _forward(model, chosen, entering)
        gradients, head = _through_head(model, hidden, seed)
        if model.inventory.head is not None:
            yield {model.inventory.head.name: _head_sensitivity(model, model.inventory.head, head, tiled)}
        for index in reversed(range(model.inventory.blocks)):
            gradients, found = _through_block(model, index, entering, gradients, tiled)
            yield found
        if model.inventory.embedding.in_features == model.inventory.hidden_size:
            yield {model.inventory.embedding.name: _embedding_sensitivity(model, chosen, gradients, head, tiled)}


def measure_all(
    model: BlockwiseModel, ids: Tensor, *, seed: int = 0, tiled: KroneckerFamily | None = None
) -> dict[str, Sensitivity]:
    """Return the sensitivities of all target modules by name; see `measure`."""
    return {name: found for part in measure(model, ids, seed=seed, tiled=tiled) for name, found in part.items()}


def site_errors(sensitivities: Mapping[str, Sensitivity]) -> dict[str, SiteErrors]:
    """Return the errors by which a method plans its budgets, by module name."""
    return {
        name: SiteErrors(found.spectrum.tolist(), {tile: errors.tolist() for tile, errors in found.tiles.items()})
        for name, found in sensitivities.items()
    }


@torch.no_grad()
def _forward(model: BlockwiseModel, ids: Tensor, entering: Shelf) -> Tensor:
    """Return the last block's output [sequences, length, width]; keep every block's input in `entering`."""
    hidden = model.hidden(ids)
    for index in range(model.inventory.blocks):
        entering.put(index, hidden)
        with model.block(index) as block:
            hidden = torch.cat([model.run(block, index, sequence) for sequence in torch.split(hidden, 1)])
    return hidden


@dataclass(frozen=True)
class _HeadMoments:
    """Statistics of the output head, summed over the text.

    `probabilities` [V] and `variances` [V] hold p and p (1 − p) of each token of the vocabulary, `inputs` the second
    moments of the head's inputs.
    """

    probabilities: Tensor
    variances: Tensor
    inputs: Moments


def _through_head(model: BlockwiseModel, hidden: Tensor, seed: int) -> tuple[Tensor, _HeadMoments]:
    """Return the loss gradient at the last block's output [sequences, length, width] and the statistics of the head.

    Labels are drawn from the model's own predictions.
    """
    generator = torch.Generator().manual_seed(seed)
    silence = torch.zeros(model.inventory.vocab_size, dtype=torch.float64, device=hidden.device)
    empty = Moments.empty(model.inventory.embedding.in_features, hidden.device)
    seen = _HeadMoments(silence, silence.clone(), empty)
    handle = model.head_module.register_forward_pre_hook(lambda _, inputs: seen.inputs.add(inputs[0].detach()))
    gradients: list[Tensor] = []
    tokens_at_a_time = min(HEAD_TOKENS, hidden.shape[1])
    with model.head() as head:
        for tokens in torch.split(hidden.flatten(0, 1), tokens_at_a_time):
            entering = tokens.unsqueeze(0).requires_grad_()
            logits = head(entering).float().squeeze(0)
            predicted = logits.detach().softmax(-1)
            labels = draw_from_rows(predicted.cumsum(-1), generator)
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            gradients += torch.autograd.grad(loss, entering)
            seen.probabilities.add_(predicted.sum(0).double())
            seen.variances.add_((predicted * (1 - predicted)).sum(0).double())
    handle.remove()
    return torch.cat(gradients, dim=1).view_as(hidden), seen


def _through_block(
    model: BlockwiseModel, index: int, entering: Shelf, leaving: Tensor, tiled: KroneckerFamily | None
) -> tuple[Tensor, dict[str, Sensitivity]]:
    """Return the gradients at a block's input and the sensitivities of its modules, given the gradients at its output.

    `entering` has the inputs of the block. `leaving` [sequences, length, width] is overwritten by the result.
    """
    prefix = f"{model.inventory.block_prefix}.{index}."
    with model.block(index) as block:
        # The widest inputs come last, when the other moments have been freed.
        ordered = sorted(model.inventory.sites_of(index), key=lambda site: site.in_features)
        names = [site.name.removeprefix(prefix) for site in ordered]
        sites = _SiteMoments({name: block.get_submodule(name) for name in names})
        states = entering.get(index)
        entering.expect(index - 1)
        for inputs, gradient in zip(torch.split(states, 1), torch.split(leaving, 1), strict=True):
            inputs.requires_grad_()
            (before,) = torch.autograd.grad(model.run(block, index, inputs), inputs, gradient)
            gradient.copy_(before)
        del states, inputs, before
        sites.stop()
        return leaving, {
            site.name: sites.sensitivity(name, site, tiled) for name, site in zip(names, ordered, strict=True)
        }


class _SiteMoments:
    """Collector of one block's input moments and output gradients by module, during its forward and backward passes."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.inputs: dict[str, Moments] = {}
        self.gradients = {name: torch.zeros(()) for name in modules}
        self._last: tuple[Tensor | None, str] = (None, "")
        self._hooks = [module.register_forward_hook(partial(self._on_output, name)) for name, module in modules.items()]

    def stop(self) -> None:
        """Remove the hooks and release the block's activations, which a reference cycle would keep in memory."""
        for hook in self._hooks:
            hook.remove()
        self._last = None, ""

    def sensitivity(self, name: str, described: Site, tiled: KroneckerFamily | None) -> Sensitivity:
        """Return the sensitivity of one module and drop its moments: call it once per module."""
        moments = self.inputs.pop(name)
        squared = (self.gradients[name] / moments.tokens).double()
        outputs = (squared + SHRINKAGE * squared.mean()).sqrt()
        unread = not bool(squared.any())
        if unread:
            # Behind it stands a projection of zeros: no error here costs anything, and all outputs weigh alike.
            outputs = torch.ones_like(outputs)
        spend = all(moments is not other for other in self.inputs.values())
        site = problem(matrix_of(self.modules[name]), moments, outputs=outputs, spend=spend)
        tiles = _errors_of_tiles(described, site.weighted(), tiled) if tiled else {}
        found = spectrum(site) / 2
        if unread:
            found, tiles = torch.zeros_like(found), {tile: torch.zeros_like(each) for tile, each in tiles.items()}
        return Sensitivity(found.cpu(), outputs.cpu(), tiles={tile: each.cpu() for tile, each in tiles.items()})

    def _on_output(self, name: str, module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        """Add the inputs of a module's forward call, once for modules that read the same tensor."""
        inputs = arguments[0].detach()
        previous, sharing = self._last
        if previous is not None and previous is arguments[0]:
            self.inputs[name] = self.inputs[sharing]
        else:
            if name not in self.inputs:
                self.inputs[name] = Moments.empty(inputs.shape[-1], inputs.device)
            self.inputs[name].add(inputs)
            self._last = arguments[0], name
        output.register_hook(partial(self._on_gradient, name))

    def _on_gradient(self, name: str, gradient: Tensor) -> None:
        """Add the squared gradients at a module's outputs."""
        self.gradients[name] = self.gradients[name] + gradient.float().flatten(0, -2).square().sum(0)


def _errors_of_tiles(site: Site, target: WeightedTarget, family: KroneckerFamily) -> dict[str, Tensor]:
    """Return, by tile, the divergence in nats per token that the family's sums of 0, 1, … terms cost at the module."""
    return {
        str(tile): errors_by_terms(
            dataclasses.replace(
                family.sum(site, tile, family.most_terms(tile)),
                out_shape=(len(target.matrix) // tile.height, tile.height),
            ),
            target,
        )
        / 2
        for tile in family.tiles(site)
    }


def _embedding_sensitivity(
    model: BlockwiseModel,
    ids: Tensor,
    gradients: Tensor,
    head: _HeadMoments,
    tiled: KroneckerFamily | None,
) -> Sensitivity:
    """Return the sensitivity of the embedding table, which a tied head reads as well.

    An error δ of the row of token v costs ½ p_v δ M δᵀ with p its frequency. M is the second moment of the gradients at
    the embedded tokens. Where the head is tied, the second moment of the head's inputs is added: the diagonal of the
    softmax's curvature bounds the cost at the logits. The frequencies are averaged over the text and the predictions,
    then smoothed.
    """
    site = model.inventory.embedding
    counted = torch.bincount(ids.flatten(), minlength=site.out_features).double() / ids.numel()
    mean = (counted.to(gradients.device) + head.probabilities / ids.numel()) / 2
    outputs = smoothed(mean).sqrt()
    moments = Moments.empty(site.in_features, gradients.device)
    moments.add(gradients)
    if model.inventory.head is None:
        moments.inputs += head.inputs.inputs
    table = model.read([f"{site.name}.weight"])[f"{site.name}.weight"]
    curvature = moments.inputs / moments.tokens
    tiles = _errors_of_tiles(site, table_target(table, outputs, curvature), tiled) if tiled else {}
    found = table_spectrum(table, outputs, curvature) / 2
    return Sensitivity(found.cpu(), outputs.cpu(), curvature.cpu(), {tile: each.cpu() for tile, each in tiles.items()})


def _head_sensitivity(
    model: BlockwiseModel, site: Site, head: _HeadMoments, tiled: KroneckerFamily | None
) -> Sensitivity:
    """Return the sensitivity of an output head with a matrix of its own.

    An error of the logits costs, to second order, half its variance under the predictions p. Of that form's matrix,
    diag(p) − p pᵀ, only the diagonal p (1 − p) is kept, smoothed like the frequencies of the embedding.
    """
    outputs = smoothed(head.variances / head.inputs.tokens).sqrt()
    table = model.read([f"{site.name}.weight"])[f"{site.name}.weight"]
    second = head.inputs.inputs / head.inputs.tokens
    tiles = _errors_of_tiles(site, table_target(table, outputs, second), tiled) if tiled else {}
    found = table_spectrum(table, outputs, second) / 2
    return Sensitivity(found.cpu(), outputs.cpu(), tiles={tile: each.cpu() for tile, each in tiles.items()})


def smoothed(weights: Tensor) -> Tensor:
    """Shrink measured token weights [vocab] toward a Zipf prior and a uniform one; their sum is unchanged."""
    expected = 1 / (MOST_FREQUENT + torch.arange(len(weights), device=weights.device).to(weights))
    expected /= expected.sum()
    return TEXT_SHARE * weights + weights.sum() * (ZIPF_SHARE * expected + (1 - TEXT_SHARE - ZIPF_SHARE) / len(weights))


def to_tensors(sensitivities: Mapping[str, Sensitivity]) -> dict[str, Tensor]:
    """Return the sensitivities as a flat dict of tensors that safetensors can store."""
    tensors: dict[str, Tensor] = {}
    for name, found in sensitivities.items():
        tensors |= {f"{name}:spectrum": found.spectrum, f"{name}:outputs": found.outputs}
        tensors |= {} if found.inputs is None else {f"{name}:inputs": found.inputs}
        tensors |= {f"{name}:{TILED}{tile}": errors for tile, errors in found.tiles.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Sensitivity]:
    """Return the sensitivities that `to_tensors` has flattened."""
    fields: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(":")
        fields.setdefault(name, {})[kind] = tensor
    return {
        name: Sensitivity(
            each["spectrum"],
            each["outputs"],
            each.get("inputs"),
            {kind.removeprefix(TILED): tensor for kind, tensor in each.items() if kind.startswith(TILED)},
        )
        for name, each in fields.items()
    }
