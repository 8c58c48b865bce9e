"""From an exception of the computing child to what the job says: a code, a sentence, whether trying again helps."""

import errno
import os
import re

import torch
from safetensors import SafetensorError

from app.contract.job import Stage
from workers.compression.spec.errors import CompressionError
from workers.messages import ErrorReport

FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
"""What safetensors says of a full disk, in an exception of its own."""


class StageFailed(Exception):
    """A stage that says itself what is wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ReportedElsewhere(Exception):
    """What another process, which computed for this one, has said of its failure."""

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(report.message)
        self.report = report


def describe(error: BaseException, stage: Stage | None = None) -> ErrorReport:
    if isinstance(error, ReportedElsewhere):
        return error.report
    code, message, retryable = classify(error)
    return ErrorReport(code=code, message=message, stage=stage, retryable=retryable)


def classify(error: BaseException) -> tuple[str, str, bool]:
    match error:
        case StageFailed():
            return error.code, str(error), False
        case CompressionError():
            return snake_case(type(error).__name__), str(error), False
        case MemoryError() | torch.OutOfMemoryError():
            return "out_of_memory", "the memory of the worker does not suffice for this model and recipe", False
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return "disk_full", "the worker's disk is full", True
        case SafetensorError() if any(full in str(error) for full in FULL):
            return "disk_full", "the worker's disk is full", True
        case OSError(errno=errno.EIO | errno.ESTALE | errno.ETIMEDOUT):
            return "storage_failed", f"the worker's storage failed: {error.strerror}", True
        case _:
            return "internal_error", f"{type(error).__name__}: {str(error)[:500]}", False


def snake_case(name: str) -> str:
    """MalformedModel -> malformed_model."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
