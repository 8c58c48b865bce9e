"""What the registries offer, as the service describes it."""

from typing import Any

from app.contract.catalogue import ArchitectureInfo, ArchitectureList, MethodInfo, MethodList, RatioRange
from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.methods import METHODS, Method, MethodDoesNotFit, OptionDoesNotFit


def method_list(inventory: Inventory | None = None) -> MethodList:
    """Return every method; with an `inventory`, also the ratios that each one reaches on that model."""
    return MethodList(methods=tuple(method_info(method, inventory) for method in METHODS.values()))


def method_info(method: Method[Any], inventory: Inventory | None) -> MethodInfo:
    """Return what there is to say of a method, on a model where one is given."""
    reached, refusal = None, None
    if inventory is not None:
        try:
            found = method.range(inventory, method.options())
            reached = RatioRange(lowest=found.lowest, highest=found.highest)
        except (MethodDoesNotFit, OptionDoesNotFit) as error:
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
        refusal=refusal,
    )


def architecture_list() -> ArchitectureList:
    """Return every architecture of the registry."""
    return ArchitectureList(
        architectures=tuple(
            ArchitectureInfo(
                model_type=model_type,
                gguf=architecture.gguf is not None,
                fewer_heads=architecture.attention.heads is not None,
            )
            for model_type, architecture in ARCHITECTURES.items()
        )
    )
