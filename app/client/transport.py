"""Requests that outlast a broken connection, and answers that are what the contract says."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from app.client.errors import ProblemError, ServiceUnreachable, UnexpectedAnswer
from app.contract.job import Problem

Answer = TypeVar("Answer", bound=BaseModel)

NOT_CONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout)
BUSY = frozenset({502, 503, 504})
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 3.0


class Patience:
    """How long something is tried again, with a pause that doubles up to a limit."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = FIRST_PAUSE_SECONDS

    def pause(self) -> bool:
        """Waits before the next try; False where the time is up."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return True


def send(request: Callable[[], httpx2.Response], *, idempotent: bool, patience_seconds: float) -> httpx2.Response:
    """The answer to `request`, which is repeated while it cannot have had, or may have twice, an effect.

    Raises ServiceUnreachable when no answer came in time. An answer is returned whatever its status.
    """
    patience = Patience(patience_seconds)
    while True:
        try:
            answer = request()
        except httpx2.TransportError as error:
            repeatable = idempotent or isinstance(error, NOT_CONNECTED)
            if not (repeatable and patience.pause()):
                raise unreachable(error) from error
        else:
            if not (idempotent and answer.status_code in BUSY and patience.pause()):
                return answer


def unreachable(error: httpx2.TransportError) -> ServiceUnreachable:
    reason = str(error) or type(error).__name__
    return ServiceUnreachable(f"No answer from {error.request.url} ({reason}). Is the service running there?")


def parse(kind: type[Answer], answer: httpx2.Response) -> Answer:
    """The body as `kind`. Raises ProblemError for a refusal and UnexpectedAnswer for anything else."""
    if not answer.is_success:
        raise refusal(answer)
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise unexpected(answer) from error


def refusal(answer: httpx2.Response) -> ProblemError | UnexpectedAnswer:
    try:
        return ProblemError(Problem.model_validate_json(answer.content))
    except ValidationError:
        return unexpected(answer)


def unexpected(answer: httpx2.Response) -> UnexpectedAnswer:
    media_type = answer.headers.get("content-type", "no content type")
    return UnexpectedAnswer(
        f"{answer.url} answered {answer.status_code} with {media_type}, which is not how Modelpress answers. "
        "Check the address, and that client and service are of one version."
    )
