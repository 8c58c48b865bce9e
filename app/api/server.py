"""The HTTP server around the API."""

import uvicorn
from starlette.types import ASGIApp

DRAIN_SECONDS = 5


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server for `app` that has yet to be run; it writes no logs of its own but warnings."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )
