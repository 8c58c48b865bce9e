"""From an exception of the computing child to what the job says."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from app.contract.job import Stage
from workers.compression.spec.errors import MalformedModel, VerificationFailed
from workers.compression.training.training import Diverged
from workers.stages.failures import StageFailed, describe


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (StageFailed("text_too_short", "too short"), "text_too_short", False),
        (MalformedModel("a tensor is missing"), "malformed_model", False),
        (Diverged("a lower learning rate may help"), "diverged", False),
        (VerificationFailed("other logits"), "verification_failed", False),
        (MemoryError(), "out_of_memory", False),
        (torch.OutOfMemoryError(), "out_of_memory", False),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk_full", True),
        (SafetensorError("a damaged header"), "internal_error", False),
        (OSError(errno.ESTALE, "Stale file handle"), "storage_failed", True),
        (KeyError("surprise"), "internal_error", False),
    ],
)
def test_a_failure_has_a_stable_code_and_says_whether_another_try_can_help(
    error: Exception, code: str, retryable: bool
) -> None:
    report = describe(error, Stage.COMPRESS)
    assert (report.code, report.retryable, report.stage) == (code, retryable, Stage.COMPRESS)
