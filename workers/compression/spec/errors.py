"""The errors of the compression library. Each message says what is wrong and, where there is one, the way out."""

from typing import ClassVar


class CompressionError(ValueError):
    """The root of this package's errors; only its subclasses are raised."""

    code: ClassVar[str]
    """A stable name for programs. Each subclass declares its own; causes with the same way out share one."""


class UnsupportedArchitecture(CompressionError):
    """The model type is not in the registry of architectures."""

    code = "unsupported_architecture"


class AlreadyQuantised(CompressionError):
    """The weights are quantised; only unquantised originals are compressed."""

    code = "unsupported_architecture"


class MalformedModel(CompressionError):
    """The model's files contradict each other, the format or the architecture."""

    code = "invalid_model"


class MissingWeights(MalformedModel):
    """The directory holds no safetensors weights."""

    code = "no_safetensors"


class NoTokenizer(MalformedModel):
    """The model's files hold no tokenizer that transformers opens without code of the model's own."""

    code = "no_tokenizer"


class NotFinite(CompressionError):
    """The model's weights hold NaN or infinity."""

    code = "not_finite"


class VerificationFailed(CompressionError):
    """A written package does not load as it should or does not compute what was recorded."""

    code = "verification_failed"


class UnknownTask(CompressionError):
    """No task, group or tag has the name."""

    code = "unknown_task"


class TaskDataMissing(CompressionError):
    """The dataset that a task reads is not on this machine."""

    code = "task_data_missing"


class TaskNotRunnable(CompressionError):
    """A task cannot be set up, or asks for more than a language model and its text."""

    code = "task_not_runnable"
