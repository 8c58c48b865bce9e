"""How much a team has, and may have. What is counted cannot change until the transaction ends.

Every function takes a session and never commits.
"""

from typing import Any

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.orm import Session

from app.errors import QueueFull, QuotaExceeded
from app.jobs import uploads
from app.jobs.models import ArtifactRow, JobRow
from app.jobs.states import LEASED
from app.keys import store as keys
from app.keys.models import TeamRow
from modelpress.contract.access import Team, Usage
from modelpress.contract.job import State


def standing() -> Select[Any]:
    """Return the query for how many jobs wait, up to `most_waiting`, and the limits of `team`."""
    among = select(JobRow.id).where(JobRow.state == State.QUEUED).limit(bindparam("most_waiting")).subquery()
    limits = (
        select(limit).where(TeamRow.name == bindparam("team")).scalar_subquery()
        for limit in (TeamRow.max_queued, TeamRow.max_stored_bytes)
    )
    return select(select(func.count()).select_from(among).scalar_subquery(), *limits)


STANDING = standing()
NEAR = 200
"""Jobs below the limit from which on posts take turns, so that those that run at once cannot pass it together."""
TURNS = 0x6D6F6465
"""Number of the advisory lock by which they do."""


def check_submission(session: Session, team: str, most_waiting: int) -> None:
    """Raise QueueFull where too many jobs wait, and QuotaExceeded where the team may not post a further one now."""
    asked = {"most_waiting": most_waiting, "team": team}
    waiting, *limits = session.connection().execute(STANDING, asked).one()
    if most_waiting - NEAR <= waiting < most_waiting:
        session.execute(select(func.pg_advisory_xact_lock(TURNS)))
        waiting = session.connection().execute(STANDING, asked).one()[0]
    if waiting >= most_waiting:
        raise QueueFull(f"{waiting} jobs are waiting already; post this one again in a while")
    if limits != [None, None]:
        check_team(session, team)


def check_team(session: Session, team: str) -> None:
    """Raise QuotaExceeded where the team may not post a further job now."""
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
