"""Permuted Kronecker sums with budgets by measured error: TQCompressor's structure, fitted to the activations."""

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.budgets import Curve, Point, second_product_fee
from modelpress.spec.families import KroneckerFamily
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.methods.base import Measured, MethodOptions, Need
from modelpress.spec.methods.factored import FactoredMethod
from modelpress.spec.structures import Structure


class KroneckerOptions(MethodOptions):
    """Options of the method `kronecker`."""

    name: Literal["kronecker"] = "kronecker"
    permutations: Literal["searched", "none"] = Field(
        "searched",
        description="`searched` permutes the rows and columns of each matrix to suit its Kronecker sum, `none` keeps "
        "their order. Index vectors count as stored parameters; the hidden units of an MLP need none, because their "
        "order is folded into the weights",
    )


class KroneckerMethod(FactoredMethod[KroneckerOptions]):
    """A method that replaces W by P_outᵀ (Σ_k A_k ⊗ B_k) P_in, as TQCompressor does (arXiv 2401.16367).

    It applies to the matrices of the blocks, the embedding and the output head. Each site takes the tile, that is the
    shape of its B_k, with the least measured error at the site's budget.
    """

    name: ClassVar[str] = "kronecker"
    title: ClassVar[str] = "permuted Kronecker sums"
    description: ClassVar[str] = (
        "Replaces matrices, the embedding included, by sums of Kronecker products with permuted rows and columns. The "
        "number of terms follows the measured effect of an error in each matrix on the model's output, and each block "
        "is fitted to undo the error of the blocks before it."
    )
    paper: ClassVar[str | None] = "arXiv 2401.16367"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.SENSITIVITIES})
    options = KroneckerOptions

    def family_of(self, options: KroneckerOptions) -> KroneckerFamily:
        return KroneckerFamily(permuted=options.permutations == "searched")

    def tiled(self, options: KroneckerOptions) -> KroneckerFamily:
        return self.family_of(options)

    def curves(
        self, inventory: Inventory, options: KroneckerOptions, measured: Measured
    ) -> dict[str, Curve[Structure]]:
        family = self.family_of(options)
        return {site.name: _curve(family, site, measured) for site in family.sites(inventory)}


def _curve(family: KroneckerFamily, site: Site, measured: Measured) -> Curve[Structure]:
    """Return the curve of a site over the sums of all tiles; a sum that costs more than a smaller one is left out."""
    whole = site.out_features * site.in_features
    points: list[Point[Structure]] = []
    for form in family.sums(site):
        errors = measured[site.name].tiles[f"{form.out_shape[1]}x{form.in_shape[1]}"]
        point: Point[Structure] = Point(form, form.parameters(site.out_features, site.in_features), errors[form.terms])
        if not points or point.divergence < points[-1].divergence:
            points.append(point)
    return Curve((*points, Point(None, whole, 0.0)), second_product_fee(site))


KRONECKER = KroneckerMethod()
