"""The GPU that a worker computes on."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("gpu", sa.Text))
    op.add_column("workers", sa.Column("gpu_memory_bytes", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("workers", "gpu_memory_bytes")
    op.drop_column("workers", "gpu")
