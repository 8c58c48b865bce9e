"""The errors of a method that cannot be used on a model."""

from workers.compression.spec.errors import CompressionError


class MethodDoesNotFit(CompressionError):
    """The method is defined for another architecture, or would not make this model smaller."""

    code = "method_does_not_fit"


class OptionDoesNotFit(CompressionError):
    """An option of the method cannot be used on this model; `option` is its name."""

    code = "method_does_not_fit"

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option
