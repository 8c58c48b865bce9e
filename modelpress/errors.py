"""The errors that service, workers and command line share."""

from collections.abc import Sequence
from typing import ClassVar


class ModelpressError(Exception):
    """Something a client can be told. The message says what is wrong and what to do instead."""

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Refused(ModelpressError):
    """A recipe that can be seen to be wrong before any work is done. Nothing was enqueued."""

    code = "refused"
    title = "The recipe is refused"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field

    @property
    def faults(self) -> Sequence["Refused"]:
        """Return a refusal of each wrong field."""
        return (self,)
