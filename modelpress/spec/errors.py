"""The errors of the compression library. Each message says what is wrong and, if possible, what to do about it."""

from typing import ClassVar


class CompressionError(ValueError):
    """The base class of the library's errors; only subclasses are raised."""

    code: ClassVar[str]
    """A stable code for programs. Each subclass declares it; errors with the same remedy share one."""


class UnsupportedArchitecture(CompressionError):
    """The model type is not registered, or a model of it cannot be compressed in the way asked for."""

    code = "unsupported_architecture"


class AlreadyQuantised(CompressionError):
    """The weights are quantised; only unquantised originals are compressed."""

    code = "unsupported_architecture"


class MalformedModel(CompressionError):
    """The model's files contradict each other, their format or the architecture."""

    code = "invalid_model"


class MissingWeights(MalformedModel):
    """The model's directory has no safetensors weights."""

    code = "no_safetensors"


class NoTokenizer(MalformedModel):
    """The model's files hold no tokenizer that transformers opens without code of the model's own."""

    code = "no_tokenizer"


class NotFinite(CompressionError):
    """The model's weights hold NaN or infinity."""

    code = "not_finite"


class VerificationFailed(CompressionError):
    """A written package does not load, or does not compute the recorded logits."""

    code = "verification_failed"


class UnknownTask(CompressionError):
    """No evaluation task, task group or tag has this name."""

    code = "unknown_task"


class TaskDataMissing(CompressionError):
    """The dataset of an evaluation task is not on this machine."""

    code = "task_data_missing"


class TaskNotRunnable(CompressionError):
    """An evaluation task cannot be set up, or needs more than a language model and text."""

    code = "task_not_runnable"
