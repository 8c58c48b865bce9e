"""From an exception of the computing child to what the job says."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from modelpress.contract.codes import FailureCode
from modelpress.spec.errors import MalformedModel, VerificationFailed
from workers.compression.training.loop import Diverged
from workers.messages import AttemptFailed
from workers.stages.failures import describe


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AttemptFailed(FailureCode.TEXT_TOO_SHORT, "too short"), "text_too_short"),
        (MalformedModel("a tensor is missing"), "invalid_model"),
        (Diverged("a lower learning rate may help"), "diverged"),
        (VerificationFailed("other logits"), "verification_failed"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"), "out_of_memory"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk_full"),
        (RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"), "disk_full"),
        (torch.linalg.LinAlgError("linalg.eigh: the input matrix is ill-conditioned"), "not_finite"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (SafetensorError("a damaged header"), "internal_error"),
        (OSError(errno.ESTALE, "Stale file handle"), "storage_failed"),
        (KeyError("surprise"), "internal_error"),
    ],
)
def test_an_exception_becomes_a_failure_code_and_the_stage_it_came_from(error: Exception, code: str) -> None:
    report = describe(error, "compress")
    assert (report.code, report.stage) == (code, "compress")
