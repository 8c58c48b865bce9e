"""The methods that a recipe may name."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.deps import Service
from app.api.documentation import refusals
from app.contract.catalogue import MethodList
from app.jobs.catalogue import method_list

router = APIRouter(tags=["methods"])


@router.get("/methods", operation_id="list_methods", responses=refusals(422, 503))
def list_methods(
    service: Service,
    model: Annotated[
        str | None,
        Query(description="a model as in a recipe, for which the answer adds the ratios that each method reaches"),
    ] = None,
) -> MethodList:
    """List every method with its options and the kind of checkpoint that it leaves."""
    return method_list(None if model is None else service.models.resolve(model).inventory)
