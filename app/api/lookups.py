"""Questions to the model hub, which may be slow, kept apart from all other work."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, move_on_after, to_thread

from app.errors import HubUnavailable

PLACES = 8
WAIT_SECONDS = 0.4

Answer = TypeVar("Answer")


class HubLookups:
    """Threads for calls that ask the hub. When all of them wait for a slow hub, further calls are refused at once."""

    def __init__(self) -> None:
        self.places = CapacityLimiter(PLACES)
        self.threads = CapacityLimiter(PLACES)

    async def run(self, call: Callable[[], Answer]) -> Answer:
        """Return what `call` returns. Raises HubUnavailable where no thread becomes free within moments."""
        borrower = object()
        with move_on_after(WAIT_SECONDS) as wait:
            await self.places.acquire_on_behalf_of(borrower)
        if wait.cancelled_caught:
            raise HubUnavailable(
                f"The model hub is slow: {PLACES} other requests wait for it. Try again later, or use a 'local:' model."
            )
        try:
            return await to_thread.run_sync(call, limiter=self.threads)
        finally:
            self.places.release_on_behalf_of(borrower)
