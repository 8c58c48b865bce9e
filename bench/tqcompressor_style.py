"""TQCompressor's fit (arXiv 2401.16367) on every matrix of a model of any architecture, as a baseline.

The published configuration is for GPT-2 alone. What is general about it is the fit: Kronecker sums in the plain norm,
which no data has a part in.
"""

from torch import Tensor

from modelpress.spec.families import stored_parameters
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.structures import Kronecker, Structure
from workers.compression.math.fitting import matrix_of
from workers.compression.math.kronecker import data_free
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart

TILE = 4


def tqcompressor_style(model: StreamedModel, ratio: float) -> CompressedPart:
    """Return every matrix of every block as a sum of Kronecker products with tiles of TILE × TILE.

    The number of terms, the same for all, is the one that brings the model nearest to `ratio`; the embedding stays.
    """
    forms = nearest(model.inventory, ratio)
    tensors: dict[str, Tensor] = {}
    for index in range(model.inventory.blocks):
        prefix = f"{model.inventory.block_prefix}.{index}."
        with model.block(index) as block:
            for name in (name for name in forms if name.startswith(prefix)):
                matrix = matrix_of(block.get_submodule(name.removeprefix(prefix))).double()
                factors = data_free(forms[name], matrix)
                tensors |= {f"{name}.{factor}": tensor.float() for factor, tensor in factors.items()}
    return CompressedPart("every matrix", {name: form.to_dict() for name, form in forms.items()}, tensors)


def nearest(inventory: Inventory, ratio: float) -> dict[str, Structure]:
    """Return the sum of Kronecker products for each matrix, as many terms for all, that comes nearest to the ratio."""
    offers = ({site.name: tiled(site, terms) for site in inventory.sites} for terms in range(1, TILE**2))
    return min(offers, key=lambda forms: abs(inventory.total_parameters / stored_parameters(inventory, forms) - ratio))


def tiled(site: Site, terms: int) -> Structure:
    """Return a sum of so many terms for a site's matrix."""
    return Kronecker(terms, (site.out_features // TILE, TILE), (site.in_features // TILE, TILE))
