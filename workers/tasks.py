"""The bell: a message with a job id arrives, the supervisor computes the job."""

from celery import Celery
from celery.exceptions import Reject

from app.jobs.doorbell import TASK
from modelpress.contract.job import AttemptOutcome
from workers.supervisor import Supervisor


def register(celery: Celery, supervisor: Supervisor) -> None:
    @celery.task(name=TASK)  # type: ignore[untyped-decorator]  # Celery has no types
    def run_job(*_: object, **__: object) -> None:
        # The message says that there is a job; the database says whose turn it is. So nothing in it matters, whatever
        # version of the service has sent it.
        if supervisor.run() is AttemptOutcome.RELEASED:
            # The message goes back at once, so that another worker need not wait for the sweeper.
            raise Reject(reason="the job was handed back", requeue=True)
