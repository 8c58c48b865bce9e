"""Keep the request that posted a job, so that the logs of its worker can name it."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.Text))


def downgrade() -> None:
    op.drop_column("jobs", "request_id")
