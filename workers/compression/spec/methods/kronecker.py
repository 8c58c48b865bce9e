"""Permuted Kronecker sums with budgets by measured error: TQCompressor's structure, fitted to the activations."""

from typing import ClassVar, Literal

from pydantic import Field

from workers.compression.spec.budgets import Curve, Point, second_product_fee
from workers.compression.spec.families import KroneckerFamily
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.methods.base import Measured, MethodOptions, Need
from workers.compression.spec.methods.factored import FactoredMethod


class KroneckerOptions(MethodOptions):
    """What a recipe may say of the method `kronecker`."""

    name: Literal["kronecker"] = "kronecker"
    permutations: Literal["searched", "none"] = Field(
        "searched",
        description="whether rows and columns of each matrix are put in the order that suits its Kronecker sum; the "
        "index vectors count as stored numbers, but for the hidden units of an MLP, whose order is folded into the "
        "weights",
    )


class KroneckerMethod(FactoredMethod[KroneckerOptions]):
    """W ≈ P_outᵀ (Σ_k A_k ⊗ B_k) P_in for the matrices of the blocks, the embedding and the output head.

    Each site takes the tile, the shape of its B_k, whose measured error is least at the site's budget.
    """

    name: ClassVar[str] = "kronecker"
    title: ClassVar[str] = "permuted Kronecker sums"
    description: ClassVar[str] = (
        "Replaces matrices by sums of Kronecker products in the order of rows and columns that suits them, the "
        "embedding included. The numbers of terms follow what an error in each matrix does to the model's output, and "
        "each block is fitted to undo the error of the blocks before it."
    )
    paper: ClassVar[str | None] = "arXiv 2401.16367"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.SENSITIVITIES})
    options = KroneckerOptions

    def family_of(self, options: KroneckerOptions) -> KroneckerFamily:
        return KroneckerFamily(permuted=options.permutations == "searched")

    def tiled(self, options: KroneckerOptions) -> KroneckerFamily:
        return self.family_of(options)

    def curves(self, inventory: Inventory, options: KroneckerOptions, measured: Measured) -> dict[str, Curve]:
        family = self.family_of(options)
        return {site.name: _curve(family, site, measured) for site in family.sites(inventory)}


def _curve(family: KroneckerFamily, site: Site, measured: Measured) -> Curve:
    """The sums of all tiles that are worth their numbers: a larger one that costs more nats is left out."""
    whole = site.out_features * site.in_features
    points: list[Point] = []
    for form in family.sums(site):
        errors = measured[site.name].tiles[f"{form.out_shape[1]}x{form.in_shape[1]}"]
        point = Point(form, form.parameters(site.out_features, site.in_features), errors[form.terms])
        if not points or point.divergence < points[-1].divergence:
            points.append(point)
    return Curve((*points, Point(None, whole, 0.0)), second_product_fee(site))


KRONECKER = KroneckerMethod()
