"""What an error at each site does to the model's output, measured by one pass forward and one backward.

The divergence from the original grows, to second order, by ½ E‖K(W − Ŵ)x‖² summed over the sites, with x the inputs of
the site and KᵀK the second moment of the gradient that reaches its outputs: the Fisher information, taken as a
product of its two sides (K-FAC, arXiv 1503.05671). Labels are drawn from the original itself, so the text decides
what is read and not what is expected. Only the diagonal of KᵀK is kept: it is what a few thousand tokens determine.

Promise: one block's weights are in memory at a time; the inputs of the blocks wait in a temporary directory.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from workers.compression.drawing import drawn
from workers.compression.math.fitting import Moments, matrix_of, problem, spectrum
from workers.compression.math.kronecker import WeightedTarget, errors_by_terms
from workers.compression.math.tables import table_spectrum, table_target
from workers.compression.spec.families import KroneckerFamily
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.methods.base import SiteErrors

TOKENS = 8192
"""How much of the calibration text is used at most: a pass with gradients costs three without."""

HEAD_TOKENS = 256
"""Tokens that pass through the head at a time: their logits over the vocabulary are the largest tensor there is."""

MET = 0.4
"""The part of a table's weight that goes by what the text holds. Most tokens are never met in a few thousand."""

EXPECTED = 0.4
"""The part that goes by what a tokenizer learned: it numbers its tokens in the order of merging, which is roughly that
of their frequency in all text; where single characters stand at the end, the text holds them. The rest is spread over
all tokens alike."""

MOST_FREQUENT = 300
"""The number, and after the law of Zipf the frequency, from which tokens grow rarer: before it are single bytes."""

TILED = "tile "
"""Comes before the tile in the name of a tensor that holds its errors."""

SHRINKAGE = 0.02
"""Part of the mean gradient that is added everywhere: an output that was silent by chance still counts."""


@dataclass(frozen=True)
class Sensitivity:
    """What an error at one site costs. Divergences are in nats per token.

    Attributes:
        spectrum: [min(out, in)], the divergence that leaving out each singular value costs, descending.
        outputs: [out], the diagonal of K.
        inputs: [in, in], the second moment that replaces a measured one, for the embedding only.
        tiles: by the tile as '4x16', the divergence that a Kronecker sum of 0, 1, 2, … terms costs.
    """

    spectrum: Tensor
    outputs: Tensor
    inputs: Tensor | None = None
    tiles: Mapping[str, Tensor] = field(default_factory=dict)


class DifferentiableModel(Protocol):
    """What this module needs of a model; `models.StreamedModel` is one."""

    inventory: Inventory

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids [batch, length] to the first block's input [batch, length, width]."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """A block with its weights, for as long as the context lasts."""

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """The block's output for its input; gradients pass through."""

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """The function from the last block's output to logits; gradients pass through."""

    @property
    def head_module(self) -> nn.Module:
        """The output head itself."""

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of the checkpoint by name."""


@torch.enable_grad()
def measure(
    model: DifferentiableModel, ids: Tensor, *, seed: int = 0, tiled: KroneckerFamily | None = None
) -> Iterator[dict[str, Sensitivity]]:
    """Yields the sensitivities of each part by site name: the head where it has a matrix of its own, the blocks from
    last to first, then the embedding, if it is as wide as the blocks.

    `ids` are calibration tokens [sequences, length], of which up to TOKENS are used, evenly spread. `tiled` are the
    Kronecker sums whose errors are measured, too.
    """
    count = max(1, min(len(ids), TOKENS // ids.shape[1]))
    chosen = ids[torch.linspace(0, len(ids) - 1, count).long()]
    with tempfile.TemporaryDirectory(prefix="block-inputs-") as scratch:
        hidden = _forward(model, chosen, Path(scratch))
        gradients, head = _at_the_head(model, hidden, seed)
        if model.inventory.head is not None:
            yield {model.inventory.head.name: _of_head(model, model.inventory.head, head, tiled)}
        for index in reversed(range(model.inventory.blocks)):
            gradients, found = _through_block(model, index, Path(scratch) / str(index), gradients, tiled)
            yield found
        if model.inventory.embedding.in_features == model.inventory.hidden_size:
            yield {model.inventory.embedding.name: _of_embedding(model, chosen, gradients, head, tiled)}


def measure_all(
    model: DifferentiableModel, ids: Tensor, *, seed: int = 0, tiled: KroneckerFamily | None = None
) -> dict[str, Sensitivity]:
    """Return the sensitivities of all sites, by name; see `measure`."""
    return {name: found for part in measure(model, ids, seed=seed, tiled=tiled) for name, found in part.items()}


def site_errors(sensitivities: Mapping[str, Sensitivity]) -> dict[str, SiteErrors]:
    """Return what a method plans by, by the name of the site."""
    return {
        name: SiteErrors(found.spectrum.tolist(), {tile: errors.tolist() for tile, errors in found.tiles.items()})
        for name, found in sensitivities.items()
    }


@torch.no_grad()
def _forward(model: DifferentiableModel, ids: Tensor, scratch: Path) -> Tensor:
    """The last block's output [sequences, length, width]; every block's input is left in `scratch`."""
    hidden = model.hidden(ids)
    for index in range(model.inventory.blocks):
        torch.save(hidden, scratch / str(index))
        with model.block(index) as block:
            hidden = torch.cat([model.run(block, index, sequence) for sequence in torch.split(hidden, 1)])
    return hidden


@dataclass(frozen=True)
class _HeadMoments:
    """`probabilities` p and `variances` p (1 − p) of each token of the vocabulary, summed over the text; `inputs`, what
    entered the head."""

    probabilities: Tensor
    variances: Tensor
    inputs: Moments


def _at_the_head(model: DifferentiableModel, hidden: Tensor, seed: int) -> tuple[Tensor, _HeadMoments]:
    """The gradient at the last block's output [sequences, length, width], for labels drawn from the model."""
    generator = torch.Generator().manual_seed(seed)
    silence = torch.zeros(model.inventory.vocab_size, dtype=torch.float64)
    seen = _HeadMoments(silence, silence.clone(), Moments.empty(model.inventory.embedding.in_features))
    handle = model.head_module.register_forward_pre_hook(lambda _, inputs: seen.inputs.add(inputs[0].detach()))
    gradients: list[Tensor] = []
    tokens_at_a_time = min(HEAD_TOKENS, hidden.shape[1])
    with model.head() as head:
        for tokens in torch.split(hidden.flatten(0, 1), tokens_at_a_time):
            entering = tokens.unsqueeze(0).requires_grad_()
            logits = head(entering).float().squeeze(0)
            predicted = logits.detach().softmax(-1)
            labels = drawn(predicted.cumsum(-1), generator)
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            gradients += torch.autograd.grad(loss, entering)
            seen.probabilities.add_(predicted.sum(0).double().cpu())
            seen.variances.add_((predicted * (1 - predicted)).sum(0).double().cpu())
    handle.remove()
    return torch.cat(gradients, dim=1).view_as(hidden), seen


def _through_block(
    model: DifferentiableModel, index: int, entering: Path, leaving: Tensor, tiled: KroneckerFamily | None
) -> tuple[Tensor, dict[str, Sensitivity]]:
    """From the gradients at a block's output to those at its input, and the sensitivities of its sites on the way.

    `entering` is the file of the block's inputs; the gradients at the input take the place of those at the output.
    """
    prefix = f"{model.inventory.block_prefix}.{index}."
    with model.block(index) as block:
        # The widest inputs come last, when the moments of the others are gone.
        ordered = sorted(model.inventory.sites_of(index), key=lambda site: site.in_features)
        names = [site.name.removeprefix(prefix) for site in ordered]
        sites = _SiteMoments({name: block.get_submodule(name) for name in names})
        for inputs, gradient in zip(torch.split(torch.load(entering), 1), torch.split(leaving, 1), strict=True):
            inputs.requires_grad_()
            (before,) = torch.autograd.grad(model.run(block, index, inputs), inputs, gradient)
            gradient.copy_(before)
        del inputs, before
        sites.stop()
        return leaving, {
            site.name: sites.sensitivity(name, site, tiled) for name, site in zip(names, ordered, strict=True)
        }


class _SiteMoments:
    """Gathers, while a block runs forward and backward, what enters its sites and which gradients come back to them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.inputs: dict[str, Moments] = {}
        self.gradients = {name: torch.zeros(()) for name in modules}
        self._last: tuple[Tensor | None, str] = (None, "")
        self._hooks = [module.register_forward_hook(partial(self._passed, name)) for name, module in modules.items()]

    def stop(self) -> None:
        """Lets go of the block's activations, which would wait, in a ring with the hooks, for Python's collector."""
        for hook in self._hooks:
            hook.remove()
        self._last = None, ""

    def sensitivity(self, name: str, described: Site, tiled: KroneckerFamily | None) -> Sensitivity:
        """Of one site; to be asked once, since its moments are then given up."""
        moments = self.inputs.pop(name)
        squared = (self.gradients[name] / moments.tokens).double().cpu()
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
        return Sensitivity(found, outputs, tiles=tiles)

    def _passed(self, name: str, module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        inputs = arguments[0].detach()
        previous, sharing = self._last
        if previous is not None and previous is arguments[0]:
            self.inputs[name] = self.inputs[sharing]
        else:
            if name not in self.inputs:
                self.inputs[name] = Moments.empty(inputs.shape[-1])
            self.inputs[name].add(inputs)
            self._last = arguments[0], name
        output.register_hook(partial(self._returned, name))  # type: ignore[no-untyped-call]

    def _returned(self, name: str, gradient: Tensor) -> None:
        self.gradients[name] = self.gradients[name] + gradient.float().flatten(0, -2).square().sum(0)


def _errors_of_tiles(site: Site, target: WeightedTarget, family: KroneckerFamily) -> dict[str, Tensor]:
    """The divergence that sums of the family cost at the site, by tile, from 0 terms on."""
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


def _of_embedding(
    model: DifferentiableModel,
    ids: Tensor,
    gradients: Tensor,
    head: _HeadMoments,
    tiled: KroneckerFamily | None,
) -> Sensitivity:
    """Of the embedding's table, read once as the input's and, where tied, once more as the head's.

    An error δ of the row of token v costs ½ p_v δ M δᵀ with p its frequency. M is the second moment of the gradients
    that reach the embedded tokens, plus that of the head's inputs where the head is tied: the curvature of the
    logits' softmax is bounded by its diagonal. The frequencies of the text and of the predictions are averaged, and
    smoothed.
    """
    site = model.inventory.embedding
    counted = torch.bincount(ids.flatten(), minlength=site.out_features).double() / ids.numel()
    mean = (counted + head.probabilities / ids.numel()) / 2
    outputs = smoothed(mean).sqrt()
    moments = Moments.empty(site.in_features)
    moments.add(gradients)
    if model.inventory.head is None:
        moments.inputs += head.inputs.inputs
    table = model.read([f"{site.name}.weight"])[f"{site.name}.weight"].cpu()
    curvature = moments.inputs / moments.tokens
    tiles = _errors_of_tiles(site, table_target(table, outputs, curvature), tiled) if tiled else {}
    return Sensitivity(table_spectrum(table, outputs, curvature) / 2, outputs, curvature, tiles)


def _of_head(model: DifferentiableModel, site: Site, head: _HeadMoments, tiled: KroneckerFamily | None) -> Sensitivity:
    """Of an output head with a matrix of its own.

    An error of the logits costs, to second order, half their variance under the predictions p; of that form's matrix,
    diag(p) − p pᵀ, the diagonal p (1 − p) is kept, smoothed as the embedding's frequencies are.
    """
    outputs = smoothed(head.variances / head.inputs.tokens).sqrt()
    table = model.read([f"{site.name}.weight"])[f"{site.name}.weight"].cpu()
    second = head.inputs.inputs / head.inputs.tokens
    tiles = _errors_of_tiles(site, table_target(table, outputs, second), tiled) if tiled else {}
    return Sensitivity(table_spectrum(table, outputs, second) / 2, outputs, tiles=tiles)


def smoothed(weights: Tensor) -> Tensor:
    """The same sum, but a part of it where other text than this would have it."""
    expected = 1 / (MOST_FREQUENT + torch.arange(len(weights)).to(weights))
    expected /= expected.sum()
    return MET * weights + weights.sum() * (EXPECTED * expected + (1 - MET - EXPECTED) / len(weights))


def to_tensors(sensitivities: Mapping[str, Sensitivity]) -> dict[str, Tensor]:
    """A flat form that safetensors can hold."""
    tensors: dict[str, Tensor] = {}
    for name, found in sensitivities.items():
        tensors |= {f"{name}:spectrum": found.spectrum, f"{name}:outputs": found.outputs}
        tensors |= {} if found.inputs is None else {f"{name}:inputs": found.inputs}
        tensors |= {f"{name}:{TILED}{tile}": errors for tile, errors in found.tiles.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Sensitivity]:
    """The inverse of `to_tensors`."""
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
