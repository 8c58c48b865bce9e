"""A glance at a job in the event loop, which is all that most requests need."""

from app.errors import JobNotFound
from app.jobs.turns import GLANCE, Glance, as_glance
from app.quick import QuickReader, prepared

STATEMENT = prepared(GLANCE)


class Glances:
    """Glances at the jobs of all teams."""

    def __init__(self, reader: QuickReader) -> None:
        self.reader = reader

    async def at(self, job_id: str, team: str) -> Glance:
        """Return what tells whether a job of the team looks as it did.

        Raises:
            JobNotFound: there is no such job, or it is another team's.
            DatabaseUnavailable: the database does not answer.
        """
        row = await self.reader.one(STATEMENT, job_id=job_id)
        seen = None if row is None else as_glance(*row)
        if seen is None or seen.owner != team:
            raise job_not_found(job_id)
        return seen


def job_not_found(job_id: str) -> JobNotFound:
    """Return the refusal for a job that does not exist, or not for this team."""
    return JobNotFound(f"no job has the id {job_id!r}")
