"""TQCompressedGPT-2 as released (arXiv 2401.16367), for comparison.

The released configuration halves the embedding's width twice and replaces both MLP matrices of every odd block by four
Kronecker terms with small factors of 2 × 4 and permutations on both sides. Attention and even blocks stay whole. The
fit uses no data. The release keeps a whole output head beside the halved embedding; its count of 81 million parameters
leaves out that head and the permutations. Here every stored number counts.

The published order of steps matters only for the training between them, which is not part of a plan. Without training,
each fit depends on one matrix of the original alone, and the second halving on the result of the first. So both
halvings are one structure here.
"""

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.architectures import architecture_named
from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.families import stored_parameters
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.methods.base import Leaves, Measured, MethodOptions, Need, PlanningMethod
from modelpress.spec.methods.errors import MethodDoesNotFit, OptionDoesNotFit
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import Range, RatioOutOfRange
from modelpress.spec.steps import Factor
from modelpress.spec.structures import Dense, Halved, Kronecker, MalformedStructure, Structure

HALVINGS = 2
TERMS = 4
WIDE, NARROW = 4, 2


class TqCompressorOptions(MethodOptions):
    """Options of the method `tqcompressor`: which of the two published sizes to make."""

    name: Literal["tqcompressor"] = "tqcompressor"
    tied_head: bool = Field(
        False,
        description="true: the output head shares the halved embedding, which gives the published parameter count; "
        "false: the head keeps the whole table, as the released weights do",
    )


class TqCompressorMethod(PlanningMethod[TqCompressorOptions]):
    """A published configuration (arXiv 2401.16367). It fixes every structure, so each model has a single ratio."""

    name: ClassVar[str] = "tqcompressor"
    title: ClassVar[str] = "TQCompressedGPT-2 as released, for comparison"
    description: ClassVar[str] = (
        "Halves the embedding twice and turns the MLPs of odd blocks into four permuted Kronecker terms, fitted "
        "without data. For GPT-2 only, with one ratio on each model."
    )
    paper: ClassVar[str | None] = "arXiv 2401.16367"
    needs: ClassVar[frozenset[Need]] = frozenset()
    leaves: ClassVar[Leaves] = Leaves.FACTORED
    phased: ClassVar[bool] = True
    options = TqCompressorOptions

    def takes(self, architecture: Architecture) -> bool:
        return architecture.model_type == "gpt2"

    def range(self, inventory: Inventory, options: TqCompressorOptions) -> Range:
        return Range.around(self._plan(inventory, options).ratio)

    def plan(self, inventory: Inventory, ratio: float, options: TqCompressorOptions, measured: Measured) -> Plan:
        plan = self._plan(inventory, options)
        if ratio not in Range.around(plan.ratio):
            raise RatioOutOfRange(
                f"{self.name} makes this model {plan.ratio:.3f} times smaller and cannot reach a ratio of {ratio:g}"
            )
        return plan

    def _plan(self, inventory: Inventory, options: TqCompressorOptions) -> Plan:
        """Return the only plan for the model. Raises MethodDoesNotFit or OptionDoesNotFit."""
        if not self.takes(architecture_named(inventory.model_type)):
            raise MethodDoesNotFit(f"{self.name} is defined for gpt2 and not for {inventory.model_type}; send low_rank")
        if options.tied_head and inventory.head is not None:
            raise OptionDoesNotFit("tied_head", "this model has an output head of its own; send false or leave it out")
        structures = _structures(inventory, tied_head=options.tied_head)
        before = inventory.total_parameters
        try:
            after = stored_parameters(inventory, structures)
        except MalformedStructure as error:
            raise MethodDoesNotFit(f"{self.name} does not fit this model's sizes: {error}") from error
        if after >= before:
            raise MethodDoesNotFit(f"{self.name} would not make this model smaller; send low_rank")
        step = Factor(structures=structures, compensation=0.0, data_free=True)
        return Plan(method=self.name, steps=(step,), parameters_before=before, parameters_after=after)


def _structures(inventory: Inventory, *, tied_head: bool) -> dict[str, Structure]:
    """Return {site: structure} of the published configuration."""
    structures: dict[str, Structure] = {inventory.embedding.name: Halved(HALVINGS)}
    if not tied_head and inventory.head is None:
        structures[architecture_named(inventory.model_type).head] = Dense()
    odd = (site for site in inventory.sites if site.block is not None and site.block % 2 == 1)
    return structures | {site.name: _four_terms(site) for site in odd if ".mlp." in site.name}


def _four_terms(site: Site) -> Kronecker:
    """Return the structure of an MLP matrix. The longer side of the small factor is along the matrix's longer side."""
    rows, columns = (WIDE, NARROW) if site.out_features > site.in_features else (NARROW, WIDE)
    out_shape, in_shape = (site.out_features // rows, rows), (site.in_features // columns, columns)
    return Kronecker(TERMS, out_shape, in_shape, permute_in=True, permute_out=True)


TQCOMPRESSOR = TqCompressorMethod()
