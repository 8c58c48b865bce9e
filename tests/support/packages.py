"""Packages of tiny models, and what a fresh process says of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modelpress.spec.architectures import architecture_named
from modelpress.spec.errors import VerificationFailed
from modelpress.spec.inventory import Site
from tests.support.models import save_tiny_model
from tests.support.waiting import PATIENCE_SECONDS
from workers.compression import structures
from workers.compression.formats.safetensors import Safetensors
from workers.compression.formats.verification import Probe, Verified, judge_all
from workers.compression.formats.writer import Written
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay, Part

STRUCTURES = ("low_rank", "pivoted", "kronecker")

Found = TypeVar("Found")


class Outcomes(Generic[Found]):
    """A mapping of names to results of `make`. Looking up a name for which it failed raises its error."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Found]) -> None:
        self.sound: dict[str, Found] = {}
        self.failed: dict[str, Exception] = {}
        for name in names:
            try:
                self.sound[name] = make(name)
            except Exception as error:  # noqa: BLE001 - raised again by the tests of this name
                self.failed[name] = error

    def __getitem__(self, name: str) -> Found:
        if name in self.failed:
            raise self.failed[name]
        return self.sound[name]


def verified(probes: Outcomes[Probe]) -> Outcomes[Verified]:
    """Return what a fresh process, one for all, finds in each package."""
    sound = list(probes.sound.values())
    verdicts = judge_all(sound, timeout=PATIENCE_SECONDS) if sound else []
    found = dict(zip(probes.sound, verdicts, strict=True))

    def outcome(name: str) -> Verified:
        probes[name]
        verdict = found[name]
        if isinstance(verdict, VerificationFailed):
            raise verdict
        return verdict

    return Outcomes((*probes.sound, *probes.failed), outcome)


@dataclass(frozen=True)
class RandomPart:
    """A part as the compressor yields it, with random factors."""

    structures: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    removed: tuple[int, ...] = ()
    encodings: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def structure_for(kind: str, site: Site) -> dict[str, Any]:
    """Return a structure of the kind that fits the site."""
    match kind:
        case "kronecker":
            shapes = {"out": [site.out_features // 4, 4], "in": [site.in_features // 2, 2]}
            return {"kind": kind, "terms": 3, **shapes, "permute_in": True, "permute_out": True}
        case _:
            return {"kind": kind, "rank": 5}


def compress_at_random(model: nn.Module, sites: Mapping[str, dict[str, Any]]) -> RandomPart:
    """Put random structures into a model in memory, and return them as a part."""
    torch.manual_seed(2)
    structures.replace(model, sites)
    tensors: dict[str, Tensor] = {}
    for name in sites:
        compact = model.get_submodule(name)
        _randomise(compact)
        tensors |= {f"{name}.{key}": tensor.clone() for key, tensor in compact.state_dict().items()}
    return RandomPart(sites, tensors)


def _randomise(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(std=0.3)
        else:
            tensor.copy_(torch.randperm(len(tensor)))


def factored(name: str, source: Path) -> tuple[Overlay, PreTrainedModel]:
    """Write the tiny model `name` to `source`; return it with random factors, of every structure in turn.

    The overlay and the model in memory have the same factors in every matrix, the embedding's and the head's, too.
    """
    model = save_tiny_model(name, source)
    inventory = StreamedModel.open(source).inventory
    sites = {
        site.name: structure_for(kind, site) for site, kind in zip(inventory.sites, cycle(STRUCTURES), strict=False)
    }
    sites[inventory.embedding.name] = {"kind": "pivoted", "rank": 7}
    if inventory.head is None:
        sites[architecture_named(inventory.model_type).head] = {"kind": "tied", "to": inventory.embedding.name}
    else:
        sites[inventory.head.name] = {"kind": "pivoted", "rank": 9}
    return Overlay.open(source, [compress_at_random(model, sites)]), model


def write_package(source: Path, parts: Iterable[Part], destination: Path) -> Written:
    """Write the main checkpoint of the model in `source` with `parts` laid over it."""
    return Safetensors().write(Overlay.open(source, parts), destination)
