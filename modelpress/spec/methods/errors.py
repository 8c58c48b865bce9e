"""The errors of a method that cannot be used on a model."""

from modelpress.spec.dimensions import has_narrowable_mlps
from modelpress.spec.errors import CompressionError
from modelpress.spec.inventory import Inventory


class MethodDoesNotFit(CompressionError):
    """The method is defined for another architecture, or would not make this model smaller."""

    code = "method_does_not_fit"


def require_narrowable(inventory: Inventory) -> None:
    """Raise MethodDoesNotFit unless the config can state narrower MLPs, the same in all blocks."""
    if not has_narrowable_mlps(inventory):
        raise MethodDoesNotFit(
            f"the config of this {inventory.model_type} cannot state narrower MLPs, so they keep their width; send "
            "low_rank or fusion"
        )


class OptionDoesNotFit(CompressionError):
    """An option of the method cannot be used on this model; `option` is its name."""

    code = "method_does_not_fit"

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option
