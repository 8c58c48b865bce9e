"""What a failed read or write says about the worker's disk."""

import os
import shutil

from app import disk
from app.disk import FULL
from modelpress.contract.codes import FailureCode
from workers.messages import ErrorReport

FULL_TEXTS = tuple(map(os.strerror, FULL))


def is_disk_failure(error: OSError) -> bool:
    """Return whether an error says that the disk is full or does not work, and not that the program is wrong."""
    return is_full(error) or disk.is_disk_failure(error)


def is_full(error: OSError) -> bool:
    """Return whether an error says that the disk is full."""
    # shutil collects the errors of a whole tree, and keeps their messages alone.
    return error.errno in FULL or (isinstance(error, shutil.Error) and mentions_full_disk(error))


def mentions_full_disk(error: Exception) -> bool:
    """Return whether the message of an exception without an errno says that the disk is full."""
    return any(text in str(error) for text in FULL_TEXTS)


def storage_failure(error: OSError, stage: str | None = None) -> ErrorReport:
    """Return the failure of a job whose files could not be read or written: `disk_full` or `storage_failed`."""
    if is_full(error):
        return disk_full(stage)
    message = f"the worker's storage failed: {error.strerror or str(error)[:500]}"
    return ErrorReport(code=FailureCode.STORAGE_FAILED, message=message, stage=stage)


def disk_full(stage: str | None = None) -> ErrorReport:
    """Return the failure of a job that found no space on the worker's disk."""
    return ErrorReport(code=FailureCode.DISK_FULL, message="the worker's disk is full", stage=stage)
