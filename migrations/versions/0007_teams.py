"""Give jobs to teams, and teams keys, limits and a record of what was changed."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "teams",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("max_queued", sa.Integer),
        sa.Column("max_running", sa.Integer),
        sa.Column("max_stored_bytes", sa.BigInteger),
    )
    op.execute("INSERT INTO teams (name, created_at) VALUES ('default', clock_timestamp())")
    op.create_foreign_key("jobs_owner", "jobs", "teams", ["owner"], ["name"])
    op.alter_column("jobs", "owner", server_default=None)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("team", sa.Text, sa.ForeignKey("teams.name"), nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("scopes", JSONB, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.Column("used_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("team", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("detail", JSONB, nullable=False),
    )
    op.create_index("audit_of_team", "audit", ["team", sa.text("id DESC")])
    op.drop_index("jobs_newest_first", "jobs")
    op.drop_index("jobs_by_state", "jobs")
    op.create_index("jobs_newest_first", "jobs", ["owner", sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index("jobs_by_state", "jobs", ["owner", "state", sa.text("created_at DESC"), sa.text("id DESC")])


def downgrade() -> None:
    op.drop_index("jobs_by_state", "jobs")
    op.drop_index("jobs_newest_first", "jobs")
    op.create_index("jobs_newest_first", "jobs", [sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index("jobs_by_state", "jobs", ["state", sa.text("created_at DESC"), sa.text("id DESC")])
    op.drop_table("audit")
    op.drop_table("api_keys")
    op.alter_column("jobs", "owner", server_default="default")
    op.drop_constraint("jobs_owner", "jobs")
    op.drop_table("teams")
