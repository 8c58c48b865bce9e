"""How much a team has, and may have. What is counted cannot change until the transaction ends.

Every function takes a session and never commits.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import QuotaExceeded
from app.jobs import uploads
from app.jobs.models import ArtifactRow, JobRow
from app.jobs.states import LEASED
from app.keys import store as keys
from app.keys.models import TeamRow
from modelpress.contract.access import Team, Usage
from modelpress.contract.job import State


def check_submission(session: Session, team: str) -> None:
    """Raise QuotaExceeded where the team may not post a further job now."""
    limits = session.get(TeamRow, team)
    if limits is None or (limits.max_queued, limits.max_stored_bytes) == (None, None):
        return
    limits = keys.team(session, team)
    if limits.max_queued is not None and (waiting := count(session, team, State.QUEUED)) >= limits.max_queued:
        raise QuotaExceeded(
            f"{waiting} jobs of the team wait, and it may have {limits.max_queued}; "
            "post again when one of them has started, or cancel one"
        )
    if limits.max_stored_bytes is not None and (stored := stored_bytes(session, team)) >= limits.max_stored_bytes:
        raise QuotaExceeded(
            f"the team stores {stored:,} bytes, and it may store {limits.max_stored_bytes:,}; delete jobs first"
        )


def check_storing(session: Session, team: str, more_bytes: int) -> None:
    """Raise QuotaExceeded where the team may not store so many further bytes."""
    limits = keys.team(session, team)
    stored = stored_bytes(session, team)
    if limits.max_stored_bytes is not None and stored + more_bytes > limits.max_stored_bytes:
        raise QuotaExceeded(
            f"the team stores {stored:,} bytes, and it may store {limits.max_stored_bytes:,}; delete some first"
        )


def queued(session: Session) -> int:
    """Return how many jobs are waiting for a worker."""
    return session.scalar(select(func.count()).where(JobRow.state == State.QUEUED)) or 0


def may_run(session: Session, job_id: str) -> bool:
    """Return whether the team of a job may have a further one computed now."""
    team = session.execute(
        select(TeamRow.name, TeamRow.max_running).join(JobRow, JobRow.owner == TeamRow.name).where(JobRow.id == job_id)
    ).one_or_none()
    if team is None or team.max_running is None:
        return True
    limit = keys.team(session, team.name).max_running
    return limit is None or count(session, team.name, *LEASED) < limit


def usage(session: Session, team: str) -> Team:
    """Return the team with what it has and may have."""
    limits = session.get(TeamRow, team)
    return Team(
        name=team,
        queued=Usage(used=count(session, team, State.QUEUED), limit=limits and limits.max_queued),
        running=Usage(used=count(session, team, *LEASED), limit=limits and limits.max_running),
        stored_bytes=Usage(used=stored_bytes(session, team), limit=limits and limits.max_stored_bytes),
    )


def count(session: Session, team: str, *states: State) -> int:
    """Return how many jobs of the team are in one of these states."""
    query = select(func.count()).select_from(JobRow).where(JobRow.owner == team, JobRow.state.in_(states))
    return session.scalar(query) or 0


def stored_bytes(session: Session, team: str) -> int:
    """Return the size of all results and uploads of the team."""
    query = select(func.sum(ArtifactRow.bytes)).join(JobRow, JobRow.id == ArtifactRow.job_id)
    return int(session.scalar(query.where(JobRow.owner == team)) or 0) + uploads.stored_bytes(session, team)
