"""The application factory: what the API is put together from."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline

from app.api import (
    architectures,
    artifacts,
    documentation,
    events,
    health,
    jobs,
    keys,
    methods,
    metrics,
    problems,
    schemas,
    sources,
    uploads,
    webhooks,
    workers,
)
from app.api.answers import JobAnswers
from app.api.deps import refuse_unknown_parameters
from app.api.lookups import HubLookups
from app.api.probes import Probes
from app.api.rates import RateLimits
from app.api.requests import RequestFrame
from app.api.watch import Watch
from app.db import make_engine, make_sessions, newest_migration
from app.deliveries.service import WebhookService
from app.jobs.doorbell import BackgroundDoorbell, Doorbell
from app.jobs.glances import Glances
from app.jobs.service import JobService
from app.keys.oidc import OidcTokens
from app.keys.service import KeyService
from app.page import site
from app.quick import QuickReader
from app.settings import ServerSettings
from app.sources.models import ModelSources
from app.sources.text import TextSources
from app.storage.registry import open_storage

RESOURCES = (
    jobs,
    events,
    artifacts,
    uploads,
    keys,
    webhooks,
    workers,
    sources,
    methods,
    architectures,
    schemas,
    health,
    metrics,
)
MAX_BODY_BYTES = 1 << 17
"""What the largest recipe takes several times. A body is parsed on the event loop, which answers nobody meanwhile."""
DATABASE_SECONDS = 5.0
CONNECTION_TRUSTED_SECONDS = 1.0
POSTING_THREADS = 8
"""Threads that keep posted jobs. More of them only take turns at the interpreter and the connections to the database,
which makes all of them slower."""
PROVIDER_THREADS = 4
"""Threads in which a slow OpenID provider may be waited for."""
FIRST_LOOK_SECONDS = 5.0


def create_app(settings: ServerSettings, *, is_open: bool = False) -> FastAPI:
    """Return the API as an ASGI application. It connects to the database when it is first needed, not before.

    Args:
        is_open: ask for no key, and let everyone do everything. Only for a service that this machine alone can reach.
    """
    app = FastAPIOffline(
        title="Modelpress",
        version=version("modelpress"),
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        description=documentation.DESCRIPTION,
        redoc_url=None,
        separate_input_output_schemas=False,
        redirect_slashes=False,
        lifespan=lifespan,
        dependencies=[Depends(refuse_unknown_parameters)],
    )
    app.state.settings = settings
    app.state.is_open = is_open
    app.state.rates = RateLimits(settings.requests_per_minute)
    app.state.storage = open_storage(settings.artifacts_url)
    app.add_middleware(RequestFrame, max_body_bytes=MAX_BODY_BYTES, root_path=settings.root_path or "")
    problems.install(app)
    for resource in RESOURCES:
        app.include_router(resource.router)
    site.install(app, settings.root_path or "")
    documentation.install(app)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the endpoints use, and close it once the last request has been answered."""
    settings: ServerSettings = app.state.settings
    engine = make_engine(
        settings.database_url, patience_seconds=DATABASE_SECONDS, trusted_seconds=CONNECTION_TRUSTED_SECONDS
    )
    looking = make_engine(settings.database_url, pool_size=1, patience_seconds=DATABASE_SECONDS)
    doorbell = Doorbell(settings)
    bell = BackgroundDoorbell(doorbell)
    app.state.probes = probes = Probes.of(settings, looking, app.state.storage, doorbell)
    app.state.lookups = HubLookups()
    app.state.answers = JobAnswers()
    app.state.posting_threads = CapacityLimiter(POSTING_THREADS)
    app.state.provider_threads = CapacityLimiter(PROVIDER_THREADS)
    reader = QuickReader(settings.database_url, patience_seconds=DATABASE_SECONDS)
    app.state.glances = Glances(reader)
    sessions = make_sessions(engine)
    app.state.metrics = metrics.Metrics(sessions, probes)
    app.state.webhooks = WebhookService(settings, sessions)
    app.state.keys = KeyService(
        sessions, is_open=app.state.is_open, oidc=None if settings.oidc is None else OidcTokens(settings.oidc)
    )
    app.state.service = JobService(
        settings, sessions, ModelSources(settings.sources), TextSources(settings.sources), bell
    )
    newest_migration()  # read once, before anything depends on how long that takes
    probes.start()
    app.state.watch = watch = Watch(sessions)
    watching = asyncio.create_task(watch.run())
    await to_thread.run_sync(probes.wait, FIRST_LOOK_SECONDS)
    try:
        yield
    finally:
        watching.cancel()
        await reader.close()
        probes.close()
        bell.close()
        doorbell.celery.close()
        looking.dispose()
        engine.dispose()
