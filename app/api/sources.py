"""What recipes can name without a hub: local models, local and builtin texts."""

from fastapi import APIRouter

from app.api.deps import Reading
from app.api.documentation import refusals
from app.sources.shelf import model_names, text_names
from app.sources.text import BUILTIN
from modelpress.contract.catalogue import SourceList

router = APIRouter(tags=["sources"])


@router.get("/models", operation_id="list_models", responses=refusals(401, 403))
def list_models(service: Reading) -> SourceList:
    """List the `local:` models. A model of the hub need not be listed to be named."""
    return SourceList(references=model_names(service.settings.model_roots), hub=service.settings.hub_enabled)


@router.get("/datasets", operation_id="list_datasets", responses=refusals(401, 403))
def list_datasets(service: Reading) -> SourceList:
    """List the `builtin:` and `local:` texts, and the team's uploads. A dataset of the hub need not be listed."""
    builtin = tuple(f"builtin:{name}" for name in BUILTIN)
    local = text_names(service.settings.data_roots)
    return SourceList(references=(*builtin, *service.text_names(), *local), hub=service.settings.hub_enabled)
