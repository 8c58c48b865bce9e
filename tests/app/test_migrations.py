"""The migrations build exactly the tables that the code knows, and can be taken back."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect

from app.db import Base, at_head, migrations_config, upgrade


def test_the_migrated_schema_is_that_of_the_models(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = [change for change in compare_metadata(context, Base.metadata) if change[0] != "remove_index"]
    assert differences == []


def test_every_migration_can_be_taken_back_and_applied_again(engine: Engine) -> None:
    config = migrations_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert not set(Base.metadata.tables) & set(inspect(engine).get_table_names())
    assert not at_head(engine)
    upgrade(engine)
    assert at_head(engine)
    assert set(Base.metadata.tables) <= set(inspect(engine).get_table_names())
