"""Alembic's entry: migrates over the connection that `app.db.upgrade` hands in."""

from alembic import context
from sqlalchemy import text

from app.jobs.models import JobRow

MIGRATION_LOCK = 0x6D6F6470  # any constant of ours: two migrating processes wait for each other


def run() -> None:
    connection = context.config.attributes["connection"]
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    context.configure(connection=connection, target_metadata=JobRow.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


run()
