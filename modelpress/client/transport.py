"""Send requests with retries, and parse answers according to the contract."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from modelpress.client.errors import ProblemError, ServiceUnreachable, UnexpectedAnswer
from modelpress.contract.job import Problem

Answer = TypeVar("Answer", bound=BaseModel)


class Nothing(BaseModel):
    """The content of an answer that has none."""


KEY_VARIABLE = "MODELPRESS_API_KEY"
CONNECT_SECONDS = 5.0
TOO_MANY = b"/problems/too_many_requests"
BUSY = frozenset({502, 503, 504})
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 3.0


def connection(url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Return the arguments of an HTTP client; its key is `api_key` or that of MODELPRESS_API_KEY, if there is one."""
    key = api_key or os.environ.get(KEY_VARIABLE)
    return {
        "base_url": url,
        "timeout": httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
        "follow_redirects": True,
        "headers": {"User-Agent": "modelpress"} | ({"Authorization": f"Bearer {key}"} if key else {}),
    }


class Patience:
    """A time limit for retries, with a pause between them that doubles up to a maximum."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = FIRST_PAUSE_SECONDS

    def next_pause(self, asked: float = 0.0) -> float | None:
        """Return how long to wait before the next try, at least `asked` seconds; None if the time is up by then."""
        left = self._deadline - time.monotonic()
        if left <= asked:
            return None
        pause = max(min(self._pause, left), asked)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return pause

    def pause(self, asked: float = 0.0) -> bool:
        """Sleep before the next try and return True, or return False at once if the time is up."""
        pause = self.next_pause(asked)
        if pause is None:
            return False
        time.sleep(pause)
        return True


def send(request: Callable[[], httpx2.Response], *, patience_seconds: float) -> httpx2.Response:
    """Send a request that may be repeated, retry it after any failure, and return the answer, whatever its status.

    A busy service is asked again as soon as its `Retry-After` says.

    Raises:
        ServiceUnreachable: no answer arrived in time.
    """
    patience = Patience(patience_seconds)
    while True:
        try:
            answer = request()
        except httpx2.TransportError as error:
            if not patience.pause():
                raise unreachable(error) from error
        else:
            if not (is_busy(answer) and patience.pause(asked_pause(answer))):
                return answer


async def send_async(request: Callable[[], Awaitable[httpx2.Response]], *, patience_seconds: float) -> httpx2.Response:
    """Do what `send` does, and let others run meanwhile."""
    patience = Patience(patience_seconds)
    while True:
        answer, failure = None, None
        try:
            answer = await request()
        except httpx2.TransportError as error:
            failure = error
        if answer is not None and not is_busy(answer):
            return answer
        pause = patience.next_pause(0.0 if answer is None else asked_pause(answer))
        if pause is not None:
            await asyncio.sleep(pause)
        elif answer is not None:
            return answer
        elif failure is not None:
            raise unreachable(failure) from failure


def is_busy(answer: httpx2.Response) -> bool:
    """Return whether the same request may be answered in a moment. A full quota is no such case."""
    limited = answer.status_code == httpx2.codes.TOO_MANY_REQUESTS and TOO_MANY in answer.content
    return limited or answer.status_code in BUSY


def asked_pause(answer: httpx2.Response) -> float:
    """Return the seconds that `Retry-After` asks to wait; 0 without it, and where it is no number."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def unreachable(error: httpx2.TransportError) -> ServiceUnreachable:
    """Return the error for a request that got no answer."""
    reason = str(error) or type(error).__name__
    return ServiceUnreachable(f"No answer from {error.request.url} ({reason}). Is the service running there?")


def parse(kind: type[Answer], answer: httpx2.Response) -> Answer:
    """Return the body of the answer as a value of type `kind`.

    Raises:
        ProblemError: the service refused the request.
        UnexpectedAnswer: the body is something else.
    """
    if not answer.is_success:
        raise refusal(answer)
    try:
        return kind.model_validate_json(answer.content or b"{}" if kind is Nothing else answer.content)
    except ValidationError as error:
        raise unexpected(answer) from error


def refusal(answer: httpx2.Response) -> ProblemError | UnexpectedAnswer:
    """Return the error for an unsuccessful answer."""
    try:
        return ProblemError(Problem.model_validate_json(answer.content))
    except ValidationError:
        return unexpected(answer)


def unexpected(answer: httpx2.Response) -> UnexpectedAnswer:
    """Return the error for an answer that does not follow the contract."""
    media_type = answer.headers.get("content-type", "no content type")
    return UnexpectedAnswer(
        f"{answer.url} answered {answer.status_code} with {media_type}, which is no answer of Modelpress. "
        "Check the address, and that client and service have the same version."
    )
