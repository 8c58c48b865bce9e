"""The architectures whose models can be compressed."""

from fastapi import APIRouter

from app.api.documentation import refusals
from app.jobs.catalogue import architecture_list
from modelpress.contract.catalogue import ArchitectureList

router = APIRouter(tags=["architectures"])


@router.get("/architectures", operation_id="list_architectures", responses=refusals())
def list_architectures() -> ArchitectureList:
    """List every architecture that a model may have."""
    return architecture_list()
