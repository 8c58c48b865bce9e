"""Keep the secret that a webhook had before, so that its receiver can change to the new one in its own time."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("subscriptions", sa.Column("old_secret", sa.Text))
    op.add_column("subscriptions", sa.Column("old_secret_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("subscriptions", "old_secret_until")
    op.drop_column("subscriptions", "old_secret")
