"""Turn errors into a message on stderr and an exit code. No traceback reaches a person."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pydantic import ValidationError

from modelpress.cli.extras import ExtraMissing
from modelpress.cli.follow import JobNotSucceeded
from modelpress.cli.terminal import STDERR, paragraph
from modelpress.client import ClientError, ProblemError, ServiceUnreachable
from modelpress.contract.codes import FailureCode
from modelpress.errors import ModelpressError, Refused

FAILED, MISUSED, BELOW_GATE, INFRASTRUCTURE = 1, 2, 3, 4
TOO_MANY_REQUESTS = 429
SETTING_PREFIX = "MODELPRESS_"


@contextmanager
def failures_explained() -> Iterator[None]:
    """Run the block, and end the process with a message if it fails in a known way."""
    try:
        yield
    except ValidationError as error:
        give_up(settings_lines(error), MISUSED)
    except ProblemError as error:
        busy = error.status >= 500 or error.status == TOO_MANY_REQUESTS
        give_up(str(error), INFRASTRUCTURE if busy else MISUSED)
    except Refused as error:
        give_up(f"{error.field}: {error.message}", MISUSED)
    except ExtraMissing as error:
        give_up(str(error), MISUSED)
    except JobNotSucceeded as error:
        give_up(str(error), code_of(error))
    except ServiceUnreachable as error:
        give_up(str(error), INFRASTRUCTURE)
    except (ClientError, ModelpressError) as error:
        give_up(str(error), FAILED)
    except OSError as error:
        give_up(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), FAILED)


def code_of(error: JobNotSucceeded) -> int:
    """Return the exit code for a job: a missed gate and a fault of the machines differ from a fault of the job."""
    if error.failure is None:
        return FAILED
    if error.failure.code == FailureCode.QUALITY_GATE:
        return BELOW_GATE
    return INFRASTRUCTURE if error.failure.retryable else FAILED


def give_up(message: str, code: int) -> NoReturn:
    """Print the message on stderr and end the process with the exit code."""
    STDERR.print(paragraph(message), style="red")
    sys.exit(code)


def settings_lines(error: ValidationError) -> str:
    """Return one line for each environment variable with an invalid value."""
    faults = error.errors(include_url=False, include_input=False)
    return "\n".join(f"{SETTING_PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in faults)
