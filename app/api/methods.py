"""The methods that a recipe may name."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query

from app.api.deps import Lookups, Reading
from app.api.documentation import refusals
from app.jobs.catalogue import method_list
from app.jobs.service import JobService
from app.sources.models import LOCAL
from modelpress.contract.catalogue import MethodList

router = APIRouter(tags=["methods"])


@router.get("/methods", operation_id="list_methods", responses=refusals(401, 403, 422, 503))
async def list_methods(
    service: Reading,
    lookups: Lookups,
    model: Annotated[
        str | None,
        Query(description="a model as in a recipe, for which the answer adds the ratios that each method reaches"),
    ] = None,
) -> MethodList:
    """List every method with its options, and what it leaves."""
    if model is None:
        return method_list()
    describe = partial(describe_methods, service, model)
    return await (to_thread.run_sync(describe) if model.startswith(LOCAL) else lookups.run(describe))


def describe_methods(service: JobService, model: str) -> MethodList:
    """Return every method with what it reaches on a model."""
    return method_list(service.models.resolve(model).inventory)
