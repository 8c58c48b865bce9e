"""Translate an exception of the computing child into the failure that the job shows: code, message and stage."""

import torch
from safetensors import SafetensorError

from modelpress.contract.codes import FailureCode
from modelpress.spec.errors import CompressionError
from workers.disk import disk_full, is_disk_failure, mentions_full_disk, storage_failure
from workers.messages import AttemptFailed, ErrorReport


def describe(error: BaseException, stage: str | None = None) -> ErrorReport:
    """Return the failure that the job shows for an exception raised in `stage`."""
    match error:
        case AttemptFailed():
            return error.report(stage)
        case CompressionError():
            return ErrorReport(code=FailureCode(error.code), message=str(error), stage=stage)
        case torch.linalg.LinAlgError():  # type: ignore[attr-defined]  # documented, and not in __all__
            message = f"the original computes numbers on the calibration text that cannot be worked with: {error}"[:500]
            return ErrorReport(code=FailureCode.NOT_FINITE, message=message, stage=stage)
        case _ if is_out_of_memory(error):
            message = "the worker has too little memory for this model and recipe"
            return ErrorReport(code=FailureCode.OUT_OF_MEMORY, message=message, stage=stage)
        case OSError() if is_disk_failure(error):
            return storage_failure(error, stage)
        case SafetensorError() if mentions_full_disk(error):
            return disk_full(stage)
        case RuntimeError() if "PytorchStreamWriter" in str(error) or "inline_container.cc" in str(error):
            # torch.save, which says where in torch it failed to write, and not why.
            return disk_full(stage)
        case _:
            message = f"{type(error).__name__}: {str(error)[:500]}"
            return ErrorReport(code=FailureCode.INTERNAL_ERROR, message=message, stage=stage)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory could not be had, on the GPU or beside it, where torch raises a RuntimeError."""
    lacking = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return lacking or isinstance(error, MemoryError | torch.OutOfMemoryError)
