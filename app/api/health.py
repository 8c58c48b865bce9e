"""Whether the process lives, and whether it can do its work."""

import logging
from typing import Literal

from fastapi import APIRouter
from kombu.exceptions import OperationalError
from pydantic import BaseModel

from app.api.deps import Bell, Database
from app.api.documentation import refusals
from app.db import at_head
from app.errors import NotMigrated
from app.jobs.doorbell import Doorbell

log = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class Liveness(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """`degraded`: jobs are accepted and none is lost, but they start late, for the broker does not answer."""

    status: Literal["ready", "degraded"]
    broker: Literal["ready", "unavailable"]


@router.get("/livez", operation_id="check_liveness", responses=refusals())
async def check_liveness() -> Liveness:
    """The process answers. Nothing else is asked, so a database that is down gets no process restarted."""
    return Liveness()


@router.get("/readyz", operation_id="check_readiness", responses=refusals(503))
def check_readiness(engine: Database, doorbell: Bell) -> Readiness:
    """The database answers and has every migration. Without the broker the service is degraded, and still ready."""
    if not at_head(engine):
        raise NotMigrated("the database lacks migrations; run 'modelpress migrate'")
    if broker_answers(doorbell):
        return Readiness(status="ready", broker="ready")
    return Readiness(status="degraded", broker="unavailable")


def broker_answers(doorbell: Doorbell) -> bool:
    try:
        with doorbell.celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
    except OperationalError:
        log.warning("broker_unavailable")
        return False
    return True
