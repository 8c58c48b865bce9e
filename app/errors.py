"""The errors of the domain. `api/problems.py` alone turns them into HTTP."""

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


class UnknownModel(Refused):
    code = "unknown_model"
    title = "There is no such model"


class OutsideRoots(Refused):
    code = "outside_roots"
    title = "The path lies outside the allowed directories"


class NoSafetensors(Refused):
    code = "no_safetensors"
    title = "The model has no safetensors weights"


class InvalidModel(Refused):
    code = "invalid_model"
    title = "The model's files are not what they should be"


class UnsupportedModel(Refused):
    code = "unsupported_architecture"
    title = "The architecture is not supported"


class MethodDoesNotFit(Refused):
    code = "method_does_not_fit"
    title = "The method does not fit the model"


class RatioOutOfRange(Refused):
    code = "ratio_out_of_range"
    title = "The target ratio cannot be reached"


class UnknownDataset(Refused):
    code = "unknown_dataset"
    title = "There is no such text"


class HubUnavailable(ModelpressError):
    """The hub could not be asked. Trying again later can help."""

    code = "hub_unavailable"
    title = "The model hub does not answer"


class DownloadCorrupted(ModelpressError):
    """What arrived is not what the hub promised. It was thrown away, so trying again later can help."""

    code = "download_corrupted"
    title = "A download is not what the hub promised"


class JobNotFound(ModelpressError):
    code = "job_not_found"
    title = "There is no such job"


class ArtifactNotFound(ModelpressError):
    code = "artifact_not_found"
    title = "There is no such artifact"


class JobEnded(ModelpressError):
    code = "job_ended"
    title = "The job has already ended"


class DatabaseUnavailable(ModelpressError):
    code = "database_unavailable"
    title = "The database does not answer"


class NotMigrated(ModelpressError):
    """The database lacks migrations that this version needs. `modelpress migrate` applies them."""

    code = "not_migrated"
    title = "The database is not up to date"
