"""Turn errors into a message on stderr and an exit code. No traceback reaches a person."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pydantic import ValidationError

from app.cli.extras import ExtraMissing
from app.cli.terminal import STDERR, paragraph
from app.client import ClientError, ProblemError
from app.errors import ModelpressError, Refused
from app.settings import Settings

FAILED, MISUSED = 1, 2


@contextmanager
def failures_explained() -> Iterator[None]:
    """Run the block, and end the process with a message if it fails in a known way."""
    try:
        yield
    except ValidationError as error:
        give_up(settings_lines(error), MISUSED)
    except ProblemError as error:
        give_up(str(error), MISUSED if error.status < 500 else FAILED)
    except Refused as error:
        give_up(f"{error.field}: {error.message}", MISUSED)
    except ExtraMissing as error:
        give_up(str(error), MISUSED)
    except (ClientError, ModelpressError) as error:
        give_up(str(error), FAILED)
    except OSError as error:
        give_up(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), FAILED)


def give_up(message: str, code: int) -> NoReturn:
    """Print the message on stderr and end the process with the exit code."""
    STDERR.print(paragraph(message), style="red")
    sys.exit(code)


def settings_lines(error: ValidationError) -> str:
    """Return one line for each environment variable with an invalid value."""
    prefix = Settings.model_config["env_prefix"]
    faults = error.errors(include_url=False, include_input=False)
    return "\n".join(f"{prefix}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in faults)
