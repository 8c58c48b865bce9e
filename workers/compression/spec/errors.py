"""What the compression code refuses, each with a sentence that a user can act on."""


class CompressionError(ValueError):
    """The root of this package's errors."""


class UnsupportedArchitecture(CompressionError):
    """The model type is not in the registry of architectures."""


class AlreadyQuantised(CompressionError):
    """The weights are quantised; only unquantised originals are compressed."""


class MalformedModel(CompressionError):
    """The model's files contradict each other, the format or the architecture."""


class MissingWeights(MalformedModel):
    """The directory holds no safetensors weights."""


class VerificationFailed(CompressionError):
    """A written package does not load as it should or does not compute what was recorded."""


class UnknownTask(CompressionError):
    """No task, group or tag has the name."""


class TaskDataMissing(CompressionError):
    """What a task reads does not lie on this machine."""


class TaskNotRunnable(CompressionError):
    """A task cannot be set up, or asks for more than a language model and its text."""
