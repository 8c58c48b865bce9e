"""Find jobs by what they are, let teams take turns, route jobs to a device, and know the workers."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

NEWEST_FIRST = (sa.text("created_at DESC"), sa.text("id DESC"))


def upgrade() -> None:
    op.add_column("teams", sa.Column("claimed_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("retry_of", sa.Text))
    for name, kind, expression in (
        ("model", sa.Text, "recipe ->> 'model'"),
        ("method", sa.Text, "recipe -> 'method' ->> 'name'"),
        ("device", sa.Text, "recipe ->> 'device'"),
        ("priority", sa.Integer, "coalesce((recipe ->> 'priority')::integer, 0)"),
    ):
        op.add_column("jobs", sa.Column(name, kind, sa.Computed(expression, persisted=True)))
    op.create_index("jobs_by_model", "jobs", ["owner", "model", *NEWEST_FIRST])
    op.create_index("jobs_by_method", "jobs", ["owner", "method", *NEWEST_FIRST])
    op.drop_index("jobs_waiting", "jobs")
    op.create_index(
        "jobs_waiting",
        "jobs",
        ["owner", sa.text("priority DESC"), "created_at", "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_table(
        "job_metadata",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.execute(
        """
        INSERT INTO job_metadata (job_id, key, owner, value, created_at)
        SELECT id, pair.key, owner, pair.value, created_at FROM jobs, jsonb_each_text(recipe -> 'metadata') AS pair
        """
    )
    op.create_index(
        "jobs_by_metadata",
        "job_metadata",
        ["owner", "key", "value", sa.text("created_at DESC"), sa.text("job_id DESC")],
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("labels", JSONB, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("draining", sa.Boolean, nullable=False),
    )
    op.create_table(
        "deletions",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("deletions")
    op.drop_table("workers")
    op.drop_table("job_metadata")
    op.drop_index("jobs_waiting", "jobs")
    for name in ("priority", "device", "method", "model", "retry_of"):
        op.drop_column("jobs", name)
    op.create_index("jobs_waiting", "jobs", ["run_after"], postgresql_where=sa.text("state = 'queued'"))
    op.drop_column("teams", "claimed_at")
