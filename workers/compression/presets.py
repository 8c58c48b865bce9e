"""Published configurations, as plans. Free of torch.

TQCompressedGPT-2 (arXiv 2401.16367, released configuration): the embedding's width is halved twice, and in every odd
block both matrices of the MLP become four Kronecker terms with small factors of 2 × 4 and permutations on both sides;
attention and even blocks stay whole. The published count leaves out an untied output head and the permutations.
"""

from workers.compression.accounting import Halved, Kronecker, Plan, Structure, parameters, stored
from workers.compression.architectures import Inventory
from workers.compression.errors import CompressionError

TERMS = 4
WIDE, NARROW = 4, 2


class PresetDoesNotFit(CompressionError):
    """The preset is defined for another architecture."""


def tqcompressor(inventory: Inventory) -> Plan:
    """The released configuration on a GPT-2. The head stays tied to the halved embedding, so the size is what is
    stored.

    Raises PresetDoesNotFit for other architectures.
    """
    if inventory.model_type != "gpt2":
        raise PresetDoesNotFit(f"tqcompressor is defined for gpt2 and not for {inventory.model_type}; send kronecker")
    structures: dict[str, Structure] = {inventory.embedding.name: Halved(2)}
    for site in inventory.sites:
        if site.block is not None and site.block % 2 == 1 and ".mlp." in site.name:
            grows = site.out_features > site.in_features
            rows, columns = (WIDE, NARROW) if grows else (NARROW, WIDE)
            out_shape, in_shape = (site.out_features // rows, rows), (site.in_features // columns, columns)
            structures[site.name] = Kronecker(TERMS, out_shape, in_shape, permute_in=True, permute_out=True)
    total = inventory.total_parameters
    return Plan("tqcompressor", structures, total, stored(inventory, structures), compensation=0.0)


def published_size(inventory: Inventory, plan: Plan, *, untied_head: bool) -> int:
    """The plan's numbers counted as the paper does, without indices; with the dense head that its release stores, or
    not.
    """
    sites = {site.name: site for site in (*inventory.sites, inventory.embedding)}
    indices = 0
    for name, structure in plan.structures.items():
        rows, columns = sites[name].out_features, sites[name].in_features
        match structure:
            case Kronecker(terms, out_shape, in_shape):
                plain = Kronecker(terms, out_shape, in_shape)
                indices += parameters(structure, rows, columns) - parameters(plain, rows, columns)
            case Halved(times):
                indices += sum(columns >> step for step in range(times))
    head = inventory.embedding.out_features * inventory.embedding.in_features if untied_head else 0
    return plan.parameters_after - indices + head
