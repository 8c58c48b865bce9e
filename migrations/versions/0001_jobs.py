"""Jobs, their attempts, their artifacts."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

STATES = "'queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled'"
ENDED = "'succeeded', 'failed', 'cancelled'"


def moment(name: str, *, nullable: bool = True) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("stage", sa.Text),
        sa.Column("progress", sa.Float, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("seconds_left", sa.Float),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("attempts_left", sa.Integer, nullable=False),
        sa.Column("worker", sa.Text),
        moment("lease_until"),
        moment("run_after", nullable=False),
        moment("rung_at", nullable=False),
        sa.Column("recipe", JSONB, nullable=False),
        sa.Column("source", JSONB, nullable=False),
        sa.Column("achieved_ratio", sa.Float),
        sa.Column("metrics", JSONB),
        sa.Column("error", JSONB),
        moment("created_at", nullable=False),
        moment("queued_at", nullable=False),
        moment("running_at"),
        moment("cancelling_at"),
        moment("succeeded_at"),
        moment("failed_at"),
        moment("cancelled_at"),
        sa.CheckConstraint(f"state IN ({STATES})", name="jobs_state_is_known"),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name="jobs_progress_is_a_fraction"),
        sa.CheckConstraint(
            "(state IN ('running', 'cancelling')) = (lease_until IS NOT NULL)", name="jobs_live_is_leased"
        ),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="jobs_failed_has_error"),
    )
    op.create_index("jobs_newest_first", "jobs", [sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index("jobs_waiting", "jobs", ["run_after"], postgresql_where=sa.text("state = 'queued'"))
    op.create_index(
        "jobs_leased", "jobs", ["lease_until"], postgresql_where=sa.text("state IN ('running', 'cancelling')")
    )
    op.execute(
        """
        CREATE FUNCTION refuse_leaving_an_ended_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'job % has ended as %', OLD.id, OLD.state USING ERRCODE = 'check_violation';
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER jobs_ended_states_are_final BEFORE UPDATE ON jobs FOR EACH ROW
        WHEN (OLD.state IN ({ENDED}) AND NEW.state IS DISTINCT FROM OLD.state)
        EXECUTE FUNCTION refuse_leaving_an_ended_state()
        """
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("worker", sa.Text, nullable=False),
        moment("started_at", nullable=False),
        moment("ended_at"),
        sa.Column("outcome", sa.Text),
        sa.Column("resumed", JSONB),
    )
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("artifacts")
    op.drop_table("attempts")
    op.drop_table("jobs")
    op.execute("DROP FUNCTION refuse_leaving_an_ended_state()")
