"""Every statement on the text that teams bring along. The caller of a function commits."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Text, cast, delete, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.db import Sessions
from app.errors import UnknownDataset
from app.jobs.models import DeletionRow, JobRow, UploadRow
from app.jobs.states import ENDED
from app.sources.text import ResolvedText, TextSources
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import UPLOAD, UploadRequest

ATTEMPT = 1
"""The number of the attempt under which the storage keeps an upload, whose id takes the place of a job's."""


def file_name(row: UploadRow) -> str:
    """Return the name under which the storage keeps the text."""
    return f"text.{row.format}"


def add(session: Session, upload_id: str, owner: str, request: UploadRequest) -> UploadRow:
    """Write down that a file is about to be sent."""
    values = {"id": upload_id, "owner": owner, "created_at": clock(), **request.model_dump(mode="json")}
    return session.scalars(insert(UploadRow).values(values).returning(UploadRow)).one()


def get(session: Session, upload_id: str, owner: str) -> UploadRow | None:
    """Return the upload, if it is one of the team; nobody deletes or completes it until the transaction ends."""
    query = select(UploadRow).where(UploadRow.id == upload_id, UploadRow.owner == owner)
    return session.scalars(query.with_for_update()).one_or_none()


def known(session: Session, owner: str, sha256: str, form: str) -> UploadRow | None:
    """Return the upload of the team with these contents: the complete one, else the newest one that was announced."""
    same = (UploadRow.owner == owner, UploadRow.sha256 == sha256, UploadRow.format == form)
    query = select(UploadRow).where(*same).order_by(UploadRow.completed_at.nulls_last(), UploadRow.created_at.desc())
    return session.scalars(query.limit(1)).one_or_none()


def complete_with(session: Session, owner: str, sha256: str, form: str) -> UploadRow | None:
    """Return the complete upload of the team with these contents."""
    found = known(session, owner, sha256, form)
    return None if found is None or found.completed_at is None else found


def complete(session: Session, upload_id: str, sha256: str) -> None:
    """Note that the whole file has arrived."""
    session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(sha256=sha256, completed_at=clock()))


def remove(session: Session, upload_id: str) -> None:
    """Forget the upload, and have its files deleted."""
    session.execute(delete(UploadRow).where(UploadRow.id == upload_id))
    session.execute(insert(DeletionRow).values(job_id=upload_id, deleted_at=clock()))


def complete_ones(session: Session) -> Sequence[UploadRow]:
    """Return every upload, of any team, that has arrived as a whole."""
    return session.scalars(select(UploadRow).where(UploadRow.completed_at.is_not(None)).order_by(UploadRow.id)).all()


def page(session: Session, owner: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[UploadRow]:
    """Return uploads of the team, newest first, beginning behind the one with this creation time and id."""
    newest = (UploadRow.created_at.desc(), UploadRow.id.desc())
    query = select(UploadRow).where(UploadRow.owner == owner).order_by(*newest).limit(limit)
    if after is not None:
        query = query.where(tuple_(UploadRow.created_at, UploadRow.id) < tuple_(*after))
    return session.scalars(query).all()


def stored_bytes(session: Session, owner: str) -> int:
    """Return the size of all uploads of the team, of which some may still be on their way."""
    return int(session.scalar(select(func.sum(UploadRow.bytes)).where(UploadRow.owner == owner)) or 0)


def jobs_that_need(session: Session, owner: str, upload_id: str) -> Sequence[str]:
    """Return the team's jobs that have not ended and name the upload."""
    names_it = cast(JobRow.recipe, Text).contains(upload_id)
    query = select(JobRow.id).where(JobRow.owner == owner, JobRow.state.not_in(ENDED), names_it)
    return session.scalars(query.limit(1)).all()


def abandoned(session: Session, age_seconds: float) -> Sequence[str]:
    """Return the uploads that were begun so long ago and have not been completed."""
    begun = (UploadRow.completed_at.is_(None), UploadRow.created_at < clock() - seconds(age_seconds))
    return session.scalars(select(UploadRow.id).where(*begun).with_for_update(skip_locked=True)).all()


def hold(session: Session, owner: str, recipe: Recipe) -> None:
    """See to it that the uploads of a recipe are there until the transaction ends. Raises UnknownDataset otherwise."""
    for field, reference in recipe.texts():
        if UPLOAD.fullmatch(reference):
            find(session, owner, reference, field)


def find(session: Session, owner: str, reference: str, field: str) -> UploadRow:
    """Return a complete upload of the team. Raises UnknownDataset where there is none."""
    query = select(UploadRow).where(UploadRow.id == reference, UploadRow.owner == owner)
    row = session.scalars(query.with_for_update(read=True)).one_or_none()
    if row is None:
        raise UnknownDataset(field, f"the team has no '{reference}'; GET /uploads lists what it has")
    if row.completed_at is None:
        raise UnknownDataset(field, f"'{reference}' has not arrived as a whole; GET /uploads/{reference} says how much")
    return row


def owner_of(session: Session, job_id: str) -> str:
    """Return the team whose job it is."""
    return session.scalars(select(JobRow.owner).where(JobRow.id == job_id)).one()


def names(session: Session, owner: str, most: int) -> Sequence[str]:
    """Return the newest uploads that the team can name in recipes."""
    complete = (UploadRow.owner == owner, UploadRow.completed_at.is_not(None))
    return session.scalars(
        select(UploadRow.id).where(*complete).order_by(UploadRow.created_at.desc(), UploadRow.id.desc()).limit(most)
    ).all()


class TeamTexts:
    """The texts that a team may name: everybody's, and what it has brought along."""

    def __init__(self, texts: TextSources, sessions: Sessions, team: str) -> None:
        self.texts = texts
        self.sessions = sessions
        self.team = team

    def check(self, reference: str, field: str) -> ResolvedText:
        """Find the text of a reference; `field` is where in the recipe it stands. Raises what TextSources does."""
        if not UPLOAD.fullmatch(reference):
            return self.texts.check(reference, field)
        with self.sessions() as session:
            find(session, self.team, reference, field)
        return ResolvedText(reference, "upload")
