"""Let the jobs of one model or method that have a pair of metadata be found without reading the others."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

COPIED = ("model", "method")
"""Fields of a recipe that never change."""


def upgrade() -> None:
    for name in COPIED:
        op.add_column("job_metadata", sa.Column(name, sa.Text))
    op.execute("UPDATE job_metadata SET model = jobs.model, method = jobs.method FROM jobs WHERE jobs.id = job_id")
    for name in COPIED:
        op.create_index(
            f"jobs_by_metadata_and_{name}",
            "job_metadata",
            ["owner", "key", "value", name, sa.text("created_at DESC"), sa.text("job_id DESC")],
        )


def downgrade() -> None:
    for name in COPIED:
        op.drop_column("job_metadata", name)
