"""Which database a data directory and a storage belong to, so that no other one decides what happens to their files."""

from sqlalchemy.exc import ProgrammingError

from app.db import Sessions
from app.errors import ForeignDataDirectory, NotMigrated
from app.jobs import ownership
from app.settings import Settings
from app.storage import Storage
from modelpress.spec.files import mark

MARK = "database"


def claim_files(settings: Settings, sessions: Sessions, storage: Storage) -> str:
    """Return the identity of the database, with which data directory and storage are marked from now on.

    Raises:
        ForeignDataDirectory: one of them carries the identity of another database.
        NotMigrated: the database has no identity yet.
    """
    try:
        with sessions() as session:
            identity = ownership.identity(session)
    except ProgrammingError as error:
        raise NotMigrated("The database lacks migrations. Run `modelpress migrate`.") from error
    path = settings.data_dir / MARK
    for place, way_out, owner in (
        (f"The data directory {settings.data_dir}", f"delete {path}", mark(path, identity)),
        (f"The storage {settings.artifacts_url}", "delete its mark", storage.owner(identity)),
    ):
        if owner != identity:
            raise ForeignDataDirectory(
                f"{place} belongs to the database {owner}, and MODELPRESS_DATABASE_URL leads to the database "
                f"{identity}. Nothing was started and nothing was changed. Give the service the database that the "
                f"files belong to, or another MODELPRESS_DATA_DIR. To hand the files over on purpose, {way_out}."
            )
    return identity
