"""The failures with which the supervisor ends an attempt by itself."""

import signal

from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Failure
from workers.child import Child
from workers.messages import AttemptFailed


def without_result(doing: str) -> AttemptFailed:
    return AttemptFailed(FailureCode.INTERNAL_ERROR, f"the {doing} process ended without a result")


def below_gate(missed: str, attempt: int) -> Failure:
    return Failure.of(FailureCode.QUALITY_GATE, missed, stage="evaluate", attempt=attempt)


def timed_out(seconds: float) -> AttemptFailed:
    return AttemptFailed(
        FailureCode.TIMED_OUT,
        f"the attempt computed for longer than {seconds:g} seconds (MODELPRESS_JOB_TIMEOUT_SECONDS)",
    )


def crashed(status: int, child: Child, *, out_of_memory: bool) -> AttemptFailed:
    if status == -signal.SIGKILL and out_of_memory:
        return AttemptFailed(FailureCode.OUT_OF_MEMORY, "the system killed the process because memory had run out")
    if status == -signal.SIGKILL:
        return AttemptFailed(
            FailureCode.COMPUTE_KILLED, "the computing process was killed by somebody or by the system"
        )
    how = f"by signal {-status}" if status < 0 else f"with exit status {status}"
    last = child.tail[-1][:300] if child.tail else "it said nothing"
    return AttemptFailed(FailureCode.COMPUTE_CRASHED, f"the computing process ended {how}: {last}")
