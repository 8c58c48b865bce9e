"""From an exception of the computing child to what the job says: a code, a sentence and a stage."""

import errno
import os

import torch
from safetensors import SafetensorError

from app.contract.codes import FailureCode
from workers.compression.spec.errors import CompressionError
from workers.messages import AttemptFailed, ErrorReport

FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
"""The text by which safetensors, which raises an exception of its own, tells of a full disk."""


def describe(error: BaseException, stage: str | None = None) -> ErrorReport:
    """Return what the job says of an exception that ended one of its stages."""
    if isinstance(error, AttemptFailed):
        return error.report(stage)
    code, message = classify(error)
    return ErrorReport(code=code, message=message, stage=stage)


def classify(error: BaseException) -> tuple[FailureCode, str]:
    """Return the code and the message of an exception that was not raised for the job to see."""
    match error:
        case CompressionError():
            return FailureCode(error.code), str(error)
        case MemoryError() | torch.OutOfMemoryError():
            return FailureCode.OUT_OF_MEMORY, "the memory of the worker does not suffice for this model and recipe"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return FailureCode.DISK_FULL, "the worker's disk is full"
        case SafetensorError() if any(full in str(error) for full in FULL):
            return FailureCode.DISK_FULL, "the worker's disk is full"
        case OSError(errno=errno.EIO | errno.ESTALE | errno.ETIMEDOUT):
            return FailureCode.STORAGE_FAILED, f"the worker's storage failed: {error.strerror}"
        case _:
            return FailureCode.INTERNAL_ERROR, f"{type(error).__name__}: {str(error)[:500]}"
