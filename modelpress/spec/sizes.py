"""How many bytes a result has in each format, and how structure and bits share in reaching a ratio. Torch-free.

    wanted = Wanted(4.0, "auto", (FORMATS["safetensors"], FORMATS["gguf"]))
    reachable(inventory, AutoOptions(), wanted)        # the ratios at which the service accepts the recipe
    candidates(inventory, AutoOptions(), wanted)       # what the stage `plan` tries, or takes if it is one

Bytes before are those of 16 bits a number, whatever the original is stored in. Bytes after are those of the weights in
a file of the format; what a format needs besides them, such as a GGUF's vocabulary, is known where it is written.

Down to about three bits a weight, rounding harms a model less than removing parameters does (docs/decisions, 011). So
parameters are removed only where the codes of fewest bits do not suffice, unless the recipe wants every weight at 16.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from modelpress.spec.codes import CODES, Code
from modelpress.spec.formats import Format
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.methods import Leaves, MethodOptions, Need, PlanningMethod, method_of, planner_of
from modelpress.spec.methods.quantisation import QUANTISATION, QuantisationOptions
from modelpress.spec.precision import PLAIN_BITS, Limits, Precision
from modelpress.spec.ranges import Range, RatioOutOfRange
from modelpress.spec.steps import Narrow

PLAIN_BYTES = 2
"""Bytes of a number that is not rounded."""

WIDTHS = (256, 128, 64, 32)
"""Numbers of which the width of a narrowed MLP is a multiple, the best one first: the blocks of codes, and what kernels
take."""

SLACK, REACH = 30, 400
"""How much narrower than needed an MLP may become for such a width, in thousandths: `SLACK` for the larger multiples,
`REACH` for the smallest, since a width that fits no code of few bits costs more bytes than it saves."""

CAUTION = 0.98
"""Fraction of the highest ratio by rounding that is promised: a file holds more than its weights."""


@dataclass(frozen=True)
class Wanted:
    """The size that a recipe asks its result to have.

    Attributes:
        ratio: bytes before / after.
        precision: the most bits that a weight may keep; `auto` leaves the choice.
        formats: the formats in which the result is written, each of which is to reach the ratio.
        besides: bytes that a file of rounded weights holds besides matrices, as far as they are known.
        embedding_precision: the most bits that embedding and output head may keep; `auto`: as `precision`.
    """

    ratio: float
    precision: Precision
    formats: tuple[Format, ...]
    besides: int = 0
    embedding_precision: Precision = "auto"

    @property
    def limits(self) -> Limits:
        """The most bits that weights may keep."""
        return Limits(self.precision, self.embedding_precision)

    @property
    def rounding(self) -> tuple[Format, ...]:
        """The formats that can hold rounded weights."""
        return tuple(form for form in self.formats if form.codes is not None)


@dataclass(frozen=True)
class Candidate:
    """A way to reach a ratio: a method, the ratio of parameters that it is to reach, and the most bits of a weight.

    A `precision` of 16 leaves every weight unrounded; `auto` lets each keep as many bits as the budget allows.
    """

    method: MethodOptions
    structure: float
    precision: Precision

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded after the method's plan is carried out."""
        return self.precision != PLAIN_BITS


def candidates(inventory: Inventory, options: MethodOptions, wanted: Wanted) -> tuple[Candidate, ...]:
    """Return the ways to reach the wanted ratio by the recipe's method, the cheapest for the model's quality first.

    Raises:
        RatioOutOfRange: there is none.
        MethodDoesNotFit, OptionDoesNotFit: as the method's `range` raises them.
    """
    found = _named(inventory, options, wanted) if _plans(options) else _chosen(inventory, options, wanted)
    if not found:
        reached = reachable(inventory, options, wanted)
        raise RatioOutOfRange(
            f"{options.name} reaches ratios from {reached.lowest:.3f} to {reached.highest:.3f} on this model at the "
            f"precision {wanted.precision}; {wanted.ratio:g} was asked for"
        )
    return tuple(found)


def reachable(inventory: Inventory, options: MethodOptions, wanted: Wanted) -> Range:
    """Return the ratios that the recipe's method reaches at its precision in all of its formats.

    `wanted.ratio` is not looked at. Raises MethodDoesNotFit, OptionDoesNotFit and RatioOutOfRange.
    """
    ranges = list(_ranges(inventory, options, wanted))
    if not ranges:
        raise RatioOutOfRange(
            f"{options.name} cannot leave {wanted.precision} bits a weight on this model in the formats "
            f"{', '.join(form.name for form in wanted.formats)}"
        )
    return Range.spanning(*ranges)


def bytes_of(inventory: Inventory, choose: Callable[[Site], Code | None], number_bytes: int = PLAIN_BYTES) -> int:
    """Return the bytes of the weights with each matrix in the chosen code; None leaves its numbers as they are.

    `number_bytes` are those of a number that is not rounded.
    """
    size = inventory.total_parameters * number_bytes
    for site in matrices(inventory):
        code = choose(site)
        if code is not None:
            size += code.bytes(site.out_features, site.in_features) - plain_bytes(site, number_bytes)
    return size


def bytes_before(inventory: Inventory) -> int:
    """Return the bytes of the weights at 16 bits a number."""
    return inventory.total_parameters * PLAIN_BYTES


def plain_bytes(site: Site, number_bytes: int = PLAIN_BYTES) -> int:
    """Return the bytes of a matrix that is not rounded."""
    return site.out_features * site.in_features * number_bytes


def matrices(inventory: Inventory) -> tuple[Site, ...]:
    """Return every matrix that may be rounded: embedding, those inside the blocks, and the head if it has its own."""
    tables = (inventory.embedding,) if inventory.head is None else (inventory.embedding, inventory.head)
    return (*tables, *inventory.sites)


def choices(form: Format, inventory: Inventory, site: Site, limits: Limits) -> tuple[Code, ...]:
    """Return the codes that a matrix may take in a format, those with most bits first; none where it stays plain.

    Where no code within the precision fits the matrix's rows, it takes the smallest code that does.
    """
    precision = limits.of(site)
    if form.codes is None or precision == PLAIN_BITS:
        return ()
    most = 16 if precision == "auto" else precision
    fitting = sorted((CODES[name] for name in form.codes(inventory, site)), key=lambda code: -code.bits_per_weight)
    return tuple(code for code in fitting if code.bits <= most) or tuple(fitting[-1:])


def _plans(options: MethodOptions) -> bool:
    return isinstance(method_of(options), PlanningMethod)


def _ranges(inventory: Inventory, options: MethodOptions, wanted: Wanted) -> Iterator[Range]:
    """Yield the ranges of ratios that the recipe reaches, one for each precision that it may come to."""
    if not _plans(options):
        if wanted.precision in ("auto", PLAIN_BITS):
            yield method_of(options).range(inventory, options)
        for each in _combinable(inventory, options):
            yield from _ranges(inventory, each, wanted)
        return
    structural = method_of(options).range(inventory, options)
    for precision in _precisions(options, wanted):
        found = _reach(inventory, options, structural, replace(wanted, precision=precision))
        if found is not None:
            yield found


def _reach(inventory: Inventory, options: MethodOptions, structural: Range, wanted: Wanted) -> Range | None:
    """Return the ratios that a named method reaches at one precision; None where it reaches none."""
    if wanted.precision == PLAIN_BITS:
        return None if options.name == QUANTISATION.name else structural
    if not wanted.rounding or method_of(options).leaves is not Leaves.PLAIN:
        return None
    lowest = max(_ratio(inventory, structural.lowest, form, wanted, most=True) for form in wanted.rounding)
    highest = min(_ratio(inventory, structural.highest, form, wanted, most=False) for form in wanted.rounding)
    return Range(lowest, highest * CAUTION) if lowest < highest * CAUTION else None


def _named(inventory: Inventory, options: MethodOptions, wanted: Wanted) -> list[Candidate]:
    """Return the way of a named method: at the most bits with which it reaches the ratio."""
    structural = method_of(options).range(inventory, options)
    for precision in _precisions(options, wanted):
        asked = replace(wanted, precision=precision)
        reached = _reach(inventory, options, structural, asked)
        if reached is not None and wanted.ratio in reached:
            if precision == PLAIN_BITS:
                return [Candidate(options, wanted.ratio, precision)]
            return [Candidate(options, _aligned(inventory, options, structural, asked), precision)]
    return []


def _chosen(inventory: Inventory, options: MethodOptions, wanted: Wanted) -> list[Candidate]:
    """Return the ways among which a method such as `auto` chooses: by trial where no weight is rounded."""
    if wanted.precision != PLAIN_BITS:
        for each in _combinable(inventory, options):
            if found := _named(inventory, each, wanted):
                return found
    if wanted.precision in ("auto", PLAIN_BITS) and wanted.ratio in method_of(options).range(inventory, options):
        return _structural(inventory, options, wanted)
    return []


def _structural(inventory: Inventory, options: MethodOptions, wanted: Wanted) -> list[Candidate]:
    """Return the ways that leave every weight at 16 bits."""
    some = method_of(options).candidates(inventory, wanted.ratio, options)
    return [Candidate(each, wanted.ratio, PLAIN_BITS) for each in some]


def _combinable(inventory: Inventory, options: MethodOptions) -> tuple[MethodOptions, ...]:
    """Return the methods that a method such as `auto` may combine with rounding, the preferred ones first.

    The first of them that reaches the ratio is taken without a trial: trials of two take longer than the rest of a job.
    """
    return (QuantisationOptions(), *method_of(options).plain(inventory, options))


def _precisions(options: MethodOptions, wanted: Wanted) -> tuple[Precision, ...]:
    """Return the precisions that a named method may come to, in the order of preference."""
    if wanted.precision != "auto":
        return (wanted.precision,)
    return ("auto",) if options.name == QUANTISATION.name else (PLAIN_BITS, "auto")


def _ratio(inventory: Inventory, structure: float, form: Format, wanted: Wanted, *, most: bool) -> float:
    """Return the ratio of bytes after a structural ratio, with each matrix in the code of most, or of fewest, bits."""
    tables, rest, rest_parameters = _division(inventory, form, wanted.limits, most=most)
    left = inventory.total_parameters / structure - _table_parameters(inventory)
    return bytes_before(inventory) / (tables + rest * left / rest_parameters + wanted.besides)


def _structure(inventory: Inventory, structural: Range, wanted: Wanted) -> float:
    """Return the least structural ratio in a method's range that the codes of fewest bits need beside them."""
    needed = structural.lowest
    for form in wanted.rounding:
        tables, rest, rest_parameters = _division(inventory, form, wanted.limits, most=False)
        budget = CAUTION * (bytes_before(inventory) / wanted.ratio - wanted.besides) - tables
        if budget <= 0:
            return structural.highest
        left = _table_parameters(inventory) + budget / rest * rest_parameters
        needed = max(needed, inventory.total_parameters / left)
    return min(needed, structural.highest)


def _aligned(inventory: Inventory, options: MethodOptions, structural: Range, wanted: Wanted) -> float:
    """Return `_structure`, or a ratio above it that leaves MLPs of a width that codes and kernels take."""
    needed = _structure(inventory, structural, wanted)

    def widths(first: int, last: int) -> Iterator[tuple[float, int]]:
        for step in range(first, last):
            ratio = needed * (1 + step / 1000)
            width = _planned_width(inventory, options, ratio) if ratio in structural else None
            if width is not None:
                yield ratio, width

    near = list(widths(0, SLACK))
    for multiple in WIDTHS:
        for ratio, width in near:
            if width % multiple == 0:
                return ratio
    return next((ratio for ratio, width in widths(SLACK, REACH) if width % WIDTHS[-1] == 0), needed)


def _planned_width(inventory: Inventory, options: MethodOptions, ratio: float) -> int | None:
    """Return the number of hidden units that a method's plan leaves, or None where it narrows none or needs to measure
    first."""
    method = planner_of(options)
    if Need.SENSITIVITIES in method.needs or method.range(inventory, options).highest <= 1:
        return None
    narrow = method.plan(inventory, ratio, options, {}).step(Narrow)
    return None if narrow is None else narrow.intermediate_size


def _division(inventory: Inventory, form: Format, limits: Limits, *, most: bool) -> tuple[int, int, int]:
    """Return the bytes of the rounded tables, the bytes of all the rest, and the rest's parameters.

    Methods that leave ordinary matrices keep embedding and head, and shrink what is between them.
    """

    def choose(site: Site) -> Code | None:
        some = choices(form, inventory, site, limits)
        if not some or (limits.of(site) == "auto" and most):
            return None
        return some[0] if most else some[-1]

    tables = 0
    for site in matrices(inventory):
        if site.block is None:
            code = choose(site)
            plain = plain_bytes(site)
            tables += plain if code is None else code.bytes(site.out_features, site.in_features)
    rest = bytes_of(inventory, choose) - tables
    return tables, rest, inventory.total_parameters - _table_parameters(inventory)


def _table_parameters(inventory: Inventory) -> int:
    return sum(site.out_features * site.in_features for site in matrices(inventory) if site.block is None)
