"""What the registries offer, as the service describes it."""

from collections.abc import Iterator
from typing import Any, get_args

from modelpress.contract.catalogue import (
    ArchitectureInfo,
    ArchitectureList,
    MethodInfo,
    MethodList,
    RatioRange,
    ReachedRange,
    RefusedArchitecture,
)
from modelpress.spec.architectures import ARCHITECTURES, INFERRED, is_registered
from modelpress.spec.formats import FORMATS, MAIN
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import METHODS, Method, MethodDoesNotFit, OptionDoesNotFit
from modelpress.spec.precision import Precision
from modelpress.spec.ranges import RatioOutOfRange
from modelpress.spec.sizes import Wanted, reachable


def method_list(inventory: Inventory | None = None) -> MethodList:
    """Return every method; with an `inventory`, also the ratios that each one reaches on that model."""
    return MethodList(methods=tuple(method_info(method, inventory) for method in METHODS.values()))


def method_info(method: Method[Any], inventory: Inventory | None) -> MethodInfo:
    """Return what there is to say of a method, on a model where one is given."""
    reached, ranges, refusal = None, tuple[ReachedRange, ...](), None
    if inventory is not None:
        try:
            found = reachable(inventory, method.options(), Wanted(1.0, "auto", (FORMATS[MAIN],)))
            reached = RatioRange(lowest=found.lowest, highest=found.highest)
            ranges = tuple(reached_ranges(method, inventory))
        except (MethodDoesNotFit, OptionDoesNotFit, RatioOutOfRange) as error:
            refusal = str(error)
    return MethodInfo(
        name=method.name,
        title=method.title,
        description=method.description,
        paper=method.paper,
        needs=tuple(sorted(method.needs)),
        leaves=method.leaves,
        options=method.options.model_json_schema(),
        range=reached,
        ranges=ranges,
        refusal=refusal,
    )


def reached_ranges(method: Method[Any], inventory: Inventory) -> Iterator[ReachedRange]:
    """Yield the ratios that a method reaches on a model, for each precision and format in which it can leave it."""
    for form in FORMATS.values():
        if form.refuses(inventory, method.leaves) is not None:
            continue
        for precision in get_args(Precision):
            try:
                found = reachable(inventory, method.options(), Wanted(1.0, precision, (form,)))
            except RatioOutOfRange:
                continue
            yield ReachedRange(precision=precision, format=form.name, lowest=found.lowest, highest=found.highest)


def architecture_list() -> ArchitectureList:
    """Return every architecture that is registered or inferred, and those that are refused."""
    return ArchitectureList(
        architectures=tuple(
            ArchitectureInfo(
                model_type=model_type,
                known="registered" if is_registered(model_type) else "inferred",
                gguf=architecture.gguf is not None,
                fewer_heads=architecture.attention.heads is not None,
                mixture=architecture.experts is not None,
                methods=tuple(name for name, method in METHODS.items() if method.takes(architecture)),
            )
            for model_type, architecture in (ARCHITECTURES | INFERRED.understood).items()
        ),
        refused=tuple(RefusedArchitecture(model_type=name, reason=why) for name, why in INFERRED.refused.items()),
    )
