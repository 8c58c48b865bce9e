"""The application factory: what the API is put together from."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.api import architectures, artifacts, documentation, health, jobs, methods, problems, schemas
from app.api.requests import RequestFrame
from app.db import make_engine, make_sessions
from app.jobs.doorbell import Doorbell
from app.jobs.service import JobService
from app.settings import ServerSettings
from app.sources.models import ModelSources
from app.sources.text import TextSources
from app.storage.registry import open_storage

MAX_BODY_BYTES = 1 << 20


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the API as an ASGI application. It connects to the database when it is first needed, not before."""
    app = FastAPIOffline(
        title="Modelpress",
        version=version("modelpress"),
        description=documentation.DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.storage = open_storage(settings.artifacts_url)
    app.add_middleware(RequestFrame, max_body_bytes=MAX_BODY_BYTES)
    problems.install(app)
    for resource in (jobs, artifacts, methods, architectures, schemas, health):
        app.include_router(resource.router)
    documentation.install(app)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: ServerSettings = app.state.settings
    engine = make_engine(settings.database_url)
    doorbell = Doorbell(settings)
    app.state.engine = engine
    app.state.doorbell = doorbell
    app.state.service = JobService(
        settings, make_sessions(engine), ModelSources(settings.sources), TextSources(settings.sources), doorbell
    )
    try:
        yield
    finally:
        doorbell.celery.close()
        engine.dispose()
