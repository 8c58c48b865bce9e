"""Whether the process lives, and whether it can do its work."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.api.deps import Probed
from app.api.documentation import refusals
from app.errors import DatabaseUnavailable
from modelpress.errors import ModelpressError

router = APIRouter(tags=["health"])


class Liveness(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """`degraded`: jobs are accepted and none is lost, but they start late, for the broker does not answer."""

    status: Literal["ready", "degraded"]
    broker: Literal["ready", "unavailable"]


@router.get("/livez", operation_id="check_liveness", responses=refusals())
async def check_liveness() -> Liveness:
    """Say that the process answers. Nothing else is asked, so a database that is down gets no process restarted."""
    return Liveness()


@router.get("/readyz", operation_id="check_readiness", responses=refusals(503))
async def check_readiness(probes: Probed) -> Readiness:
    """Say whether the database answers and has every migration, as of at most a few seconds ago.

    Without the broker the service is degraded, and still ready.
    """
    fault = probes.database.fault
    if isinstance(fault, ModelpressError):
        raise fault
    if fault is not None:
        raise DatabaseUnavailable("the database does not answer; try again in a moment")
    if probes.broker.fault is None:
        return Readiness(status="ready", broker="ready")
    return Readiness(status="degraded", broker="unavailable")
