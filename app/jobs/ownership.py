"""What the database knows of files on the disk: whose they are, and whether anybody can still ask for them."""

from collections.abc import Sequence, Set

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.jobs.models import ArtifactRow, DeletionRow, InstallationRow, JobRow, UploadRow
from app.jobs.states import ENDED, LEASED
from modelpress.contract.job import State


def identity(session: Session) -> str:
    """Return the identity of this database. A restored dump has that of the database it was taken from."""
    return session.scalars(select(InstallationRow.id)).one()


def unknown(session: Session, job_ids: Sequence[str]) -> set[str]:
    """Return those of the given names that are no job or upload of this database. Nothing follows about their worth."""
    known = (session.scalars(select(table.id).where(table.id.in_(job_ids))) for table in (JobRow, UploadRow))
    return set(job_ids).difference(*known)


def deleted(session: Session) -> set[str]:
    """Return the jobs that were deleted and whose files may still be there."""
    return set(session.scalars(select(DeletionRow.job_id)))


def forget_deleted(session: Session, job_ids: Set[str]) -> None:
    """Note that no file of these jobs is left."""
    session.execute(delete(DeletionRow).where(DeletionRow.job_id.in_(job_ids)))


def ended_since(session: Session, job_ids: Sequence[str], age_seconds: float) -> set[str]:
    """Return those of the given jobs that ended at least this long ago."""
    ended_at = func.coalesce(JobRow.succeeded_at, JobRow.failed_at, JobRow.cancelled_at)
    ended = select(JobRow.id).where(
        JobRow.id.in_(job_ids), JobRow.state.in_(ENDED), ended_at <= clock() - seconds(age_seconds)
    )
    return set(session.scalars(ended))


def superseded(session: Session, attempts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return those of the given (job id, attempt) whose files nobody can ask for: of an ended job, not its result."""
    job_ids = [job_id for job_id, _ in attempts]
    ended = set(session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.state.in_(ENDED))))
    rows = select(ArtifactRow.job_id, ArtifactRow.attempt).where(ArtifactRow.job_id.in_(job_ids)).distinct()
    results = {(job_id, attempt) for job_id, attempt in session.execute(rows)}
    return [each for each in attempts if each[0] in ended and each not in results]


def longest_run(session: Session) -> float:
    """Return for how many seconds the attempt that runs for longest has been running; 0 where none runs."""
    begun = select(func.min(JobRow.running_at)).where(JobRow.state.in_(LEASED)).scalar_subquery()
    return float(session.scalar(select(func.extract("epoch", clock() - begun))) or 0.0)


def waits_for_disk(session: Session) -> bool:
    """Return whether a job waits because a worker's disk was full or failed."""
    waiting = select(JobRow.id).where(JobRow.state == State.QUEUED, JobRow.waiting_since.is_not(None))
    return session.scalar(waiting.limit(1)) is not None
