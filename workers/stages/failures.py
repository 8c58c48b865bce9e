"""Translate an exception of the computing child into the failure that the job shows: code, message and stage."""

import errno
import os

import torch
from safetensors import SafetensorError

from app.contract.codes import FailureCode
from workers.compression.spec.errors import CompressionError
from workers.messages import AttemptFailed, ErrorReport

FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
"""Texts in the message of a SafetensorError, which carries no errno, when the disk is full."""


def describe(error: BaseException, stage: str | None = None) -> ErrorReport:
    """Return the failure that the job shows for an exception raised in `stage`."""
    if isinstance(error, AttemptFailed):
        return error.report(stage)
    code, message = classify(error)
    return ErrorReport(code=code, message=message, stage=stage)


def classify(error: BaseException) -> tuple[FailureCode, str]:
    """Return the failure code and the message for an exception other than AttemptFailed."""
    match error:
        case CompressionError():
            return FailureCode(error.code), str(error)
        case MemoryError() | torch.OutOfMemoryError():
            return FailureCode.OUT_OF_MEMORY, "the worker has too little memory for this model and recipe"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return FailureCode.DISK_FULL, "the worker's disk is full"
        case SafetensorError() if any(full in str(error) for full in FULL):
            return FailureCode.DISK_FULL, "the worker's disk is full"
        case OSError(errno=errno.EIO | errno.ESTALE | errno.ETIMEDOUT):
            return FailureCode.STORAGE_FAILED, f"the worker's storage failed: {error.strerror}"
        case _:
            return FailureCode.INTERNAL_ERROR, f"{type(error).__name__}: {str(error)[:500]}"
