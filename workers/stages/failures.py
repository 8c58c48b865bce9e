"""Translate an exception of the computing child into the failure that the job shows: code, message and stage."""

import torch
from safetensors import SafetensorError

from app.contract.codes import FailureCode
from workers.compression.spec.errors import CompressionError
from workers.disk import disk_full, is_disk_failure, mentions_full_disk, storage_failure
from workers.messages import AttemptFailed, ErrorReport


def describe(error: BaseException, stage: str | None = None) -> ErrorReport:
    """Return the failure that the job shows for an exception raised in `stage`."""
    match error:
        case AttemptFailed():
            return error.report(stage)
        case CompressionError():
            return ErrorReport(code=FailureCode(error.code), message=str(error), stage=stage)
        case MemoryError() | torch.OutOfMemoryError():
            message = "the worker has too little memory for this model and recipe"
            return ErrorReport(code=FailureCode.OUT_OF_MEMORY, message=message, stage=stage)
        case OSError() if is_disk_failure(error):
            return storage_failure(error, stage)
        case SafetensorError() if mentions_full_disk(error):
            return disk_full(stage)
        case _:
            message = f"{type(error).__name__}: {str(error)[:500]}"
            return ErrorReport(code=FailureCode.INTERNAL_ERROR, message=message, stage=stage)
