"""The workers: who computes, on what, and how to end one without losing work."""

from fastapi import APIRouter

from app.api.deps import Name, Operating, Reading
from app.api.documentation import refusals
from modelpress.contract.worker import WorkerList

router = APIRouter(tags=["workers"])


@router.get("/workers", operation_id="list_workers", responses=refusals(401, 403))
def list_workers(service: Reading) -> WorkerList:
    """List every worker with its device, when it was last heard of, and the team's job that it computes."""
    return service.workers()


@router.post("/workers/{worker_id}/drain", operation_id="drain_worker", responses=refusals(401, 403, 404, 422))
def drain_worker(worker_id: Name, service: Operating) -> WorkerList:
    """Let a worker take no further job, and end once it has computed the one that it has."""
    return service.drain(worker_id)
