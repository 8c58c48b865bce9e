"""Published configurations, as plans. Free of torch: the service asks for their size at POST.

TQCompressedGPT-2 (arXiv 2401.16367, released configuration): the embedding's width is halved, in every odd block both
matrices of the MLP become four Kronecker terms with small factors of 2 × 4 and permutations on both sides, and the
width is halved once more. Attention and even blocks stay whole, and no data enters the fit. The release keeps a whole
output head beside the halved embedding; its count of 81 million leaves that head out, and the permutations as well.
Ours counts every stored number.

The published order of the steps matters only to the training between them, which is not part of a plan. Without it each
fit sees one matrix as the original has it, and the second halving sees the codes that the first one left, whatever
became of the blocks meanwhile. So both halvings are one structure here.
"""

from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.catalog import PRESETS, Preset
from workers.compression.spec.errors import CompressionError
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.plans import (
    TOLERANCE,
    Dense,
    Halved,
    Kronecker,
    MalformedStructure,
    Plan,
    Range,
    RatioOutOfRange,
    Structure,
    parameters,
    stored,
)

HALVINGS = 2
TERMS = 4
WIDE, NARROW = 4, 2


class PresetDoesNotFit(CompressionError):
    """The preset is defined for another architecture, or would not make this model smaller."""


def preset_plan(inventory: Inventory, name: str, target_ratio: float) -> Plan:
    """The plan of a preset, which has one ratio on each model: `target_ratio` must lie within TOLERANCE of it.

    Raises RatioOutOfRange, PresetDoesNotFit.
    """
    plan = _plan(inventory, PRESETS[name])
    if target_ratio not in _around(plan.ratio):
        raise RatioOutOfRange(f"{name} makes this model {plan.ratio:.3f} times smaller; {target_ratio:g} was asked for")
    return plan


def preset_range(inventory: Inventory, name: str) -> Range:
    """The target ratios that a preset answers to on the model. Raises PresetDoesNotFit."""
    return _around(_plan(inventory, PRESETS[name]).ratio)


def published_size(inventory: Inventory, plan: Plan) -> int:
    """The plan's numbers counted as the paper does, without the permutations."""
    sites = {site.name: site for site in (*inventory.sites, inventory.embedding)}
    indices = 0
    for name, structure in plan.structures.items():
        match structure:
            case Kronecker(terms, out_shape, in_shape):
                size = sites[name].out_features, sites[name].in_features
                indices += parameters(structure, *size) - parameters(Kronecker(terms, out_shape, in_shape), *size)
            case Halved(times):
                indices += sum(sites[name].in_features >> step for step in range(times))
    return plan.parameters_after - indices


def _around(ratio: float) -> Range:
    return Range(ratio * (1 - TOLERANCE), ratio * (1 + TOLERANCE))


def _plan(inventory: Inventory, preset: Preset) -> Plan:
    if inventory.model_type != "gpt2":
        raise PresetDoesNotFit(f"{preset.name} is defined for gpt2 and not for {inventory.model_type}; send kronecker")
    if inventory.head is not None and not preset.untied_head:
        raise PresetDoesNotFit(f"{preset.name} needs a tied output head, and this model has its own; send tqcompressor")
    structures = _structures(inventory, preset)
    try:
        after = stored(inventory, structures)
    except MalformedStructure as error:
        raise PresetDoesNotFit(f"{preset.name} does not fit this model's sizes: {error}") from error
    if after >= inventory.total_parameters:
        raise PresetDoesNotFit(f"{preset.name} would not make this model smaller; send kronecker")
    return Plan(preset.name, structures, inventory.total_parameters, after, compensation=0.0, data_free=True)


def _structures(inventory: Inventory, preset: Preset) -> dict[str, Structure]:
    structures: dict[str, Structure] = {inventory.embedding.name: Halved(HALVINGS)}
    if preset.untied_head and inventory.head is None:
        structures[ARCHITECTURES[inventory.model_type].head] = Dense()
    odd = (site for site in inventory.sites if site.block is not None and site.block % 2 == 1)
    return structures | {site.name: _four_terms(site) for site in odd if ".mlp." in site.name}


def _four_terms(site: Site) -> Kronecker:
    """The larger side of the small factor lies along the larger side of the matrix."""
    rows, columns = (WIDE, NARROW) if site.out_features > site.in_features else (NARROW, WIDE)
    out_shape, in_shape = (site.out_features // rows, rows), (site.in_features // columns, columns)
    return Kronecker(TERMS, out_shape, in_shape, permute_in=True, permute_out=True)
