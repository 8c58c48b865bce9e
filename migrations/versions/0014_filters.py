"""Let every index behind a filter of jobs hold the other filters, too, so that no row is read that does not fit."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

CREATED = sa.text("created_at DESC")
JOBS = {
    "jobs_by_state": (["owner", "state"], ["model", "method"]),
    "jobs_by_model": (["owner", "model"], ["method", "state"]),
    "jobs_by_method": (["owner", "method"], ["model", "state"]),
}
METADATA = {
    "jobs_by_metadata": (["owner", "key", "value"], ["state"]),
    "jobs_by_metadata_and_model": (["owner", "key", "value", "model"], ["method", "state"]),
    "jobs_by_metadata_and_method": (["owner", "key", "value", "method"], ["state"]),
}
"""Columns of each index before the time, and after it."""


def upgrade() -> None:
    op.add_column("job_metadata", sa.Column("state", sa.Text, nullable=False, server_default="queued"))
    op.execute("UPDATE job_metadata SET state = jobs.state FROM jobs WHERE jobs.id = job_id AND jobs.state <> 'queued'")
    op.execute(
        """
        CREATE FUNCTION copy_state_to_metadata() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE job_metadata SET state = NEW.state WHERE job_id = NEW.id;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER jobs_state_is_copied AFTER UPDATE ON jobs FOR EACH ROW
        WHEN (NEW.state IS DISTINCT FROM OLD.state) EXECUTE FUNCTION copy_state_to_metadata()
        """
    )
    make_indexes(with_others=True)


def downgrade() -> None:
    make_indexes(with_others=False)
    op.execute("DROP TRIGGER jobs_state_is_copied ON jobs")
    op.execute("DROP FUNCTION copy_state_to_metadata()")
    op.drop_column("job_metadata", "state")


def make_indexes(*, with_others: bool) -> None:
    """Make the indexes anew, with the columns of other filters behind the time or without."""
    for table, job_id, indexes in (("jobs", "id", JOBS), ("job_metadata", "job_id", METADATA)):
        for name, (before, others) in indexes.items():
            op.drop_index(name, table)
            after = others if with_others else []
            op.create_index(name, table, [*before, CREATED, sa.text(f"{job_id} DESC"), *after])
