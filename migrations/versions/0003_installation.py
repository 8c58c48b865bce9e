"""Give the database an identity, by which a data directory knows whose files it holds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("single", sa.Boolean, nullable=False, unique=True, server_default=sa.true()),
        sa.CheckConstraint("single", name="installation_is_one_row"),
    )
    op.execute("INSERT INTO installation (id) VALUES (gen_random_uuid()::text)")


def downgrade() -> None:
    op.drop_table("installation")
