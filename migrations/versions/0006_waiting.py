"""Keep since when a job has been waiting for its worker's disk, and whether it has to spare memory."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("waiting_since", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("sparing", sa.Boolean, nullable=False, server_default="false"))


def downgrade() -> None:
    op.drop_column("jobs", "sparing")
    op.drop_column("jobs", "waiting_since")
